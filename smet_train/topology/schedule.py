"""When the topology moves, and how much of it."""

import math
from dataclasses import dataclass

_WSD_WARMUP, _WSD_DECAY = 0.05, 0.2  # fractions of the time in which the topology moves


@dataclass(frozen=True, slots=True)
class TopologySchedule:
    """Updates after every ``interval``-th step before ``stop_at * total_steps``, each dropping a fraction of a layer.

    The drop fraction falls from ``drop_fraction`` to ``final_drop_fraction`` until then along ``shape``: ``cosine``
    (SMET), ``linear``, ``constant`` (stays at ``drop_fraction``), or ``wsd`` (rises over the first 5 % of that time,
    stays, and falls linearly over the last 20 %). There is no update after the last step: a finished model should not
    hold weights that have never been trained.
    """

    interval: int
    drop_fraction: float
    final_drop_fraction: float
    shape: str
    stop_at: float
    total_steps: int

    def due(self, step: int) -> bool:
        """Whether the topology moves after optimizer step ``step``, counted from 1."""
        return step > 0 and step % self.interval == 0 and step < self.stop_at * self.total_steps

    @property
    def updates(self) -> int:
        """Number of updates in a whole run."""
        return max(0, math.ceil(self.stop_at * self.total_steps) - 1) // self.interval

    def largest_fraction(self) -> float:
        """The largest drop fraction of any update; 0 if there is none."""
        return max((self.fraction(number * self.interval) for number in range(1, self.updates + 1)), default=0.0)

    def pruned_density(self, step: int, density: float) -> float:
        """What gradual pruning leaves after the update at ``step``: from 1 down to ``density`` along a cubic, reached
        at the last update (Zhu and Gupta, arXiv 1710.01878, section 3)."""
        progress = min(1.0, step / max(self.interval, self.updates * self.interval))
        return density + (1 - density) * (1 - progress) ** 3

    def fraction(self, step: int) -> float:
        """The drop fraction of an update after step ``step``."""
        progress = min(1.0, step / (self.stop_at * self.total_steps))
        if self.shape == "constant":
            return self.drop_fraction
        if self.shape == "wsd":
            rising, falling = progress / _WSD_WARMUP, (1 - progress) / _WSD_DECAY
            remaining = min(1.0, rising, falling)
            return self.final_drop_fraction + (self.drop_fraction - self.final_drop_fraction) * remaining
        remaining = 0.5 * (1 + math.cos(math.pi * progress)) if self.shape == "cosine" else 1 - progress
        return self.final_drop_fraction + (self.drop_fraction - self.final_drop_fraction) * remaining
