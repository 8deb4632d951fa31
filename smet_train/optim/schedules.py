"""Learning rate schedules as pure functions of the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LrSchedule:
    """Factor on the base learning rate for each step 1 .. ``total_steps``.

    Every schedule begins with a linear warm-up over ``warmup_fraction`` of the run. Then ``cosine`` and ``linear`` fall
    to ``min_ratio`` at the last step, ``constant`` stays at 1, and ``wsd`` (warmup-stable-decay) stays at 1 until the
    last ``decay_fraction`` of the run and falls linearly to ``min_ratio``.
    """

    name: str
    total_steps: int
    warmup_fraction: float
    min_ratio: float
    decay_fraction: float

    def factor(self, step: int) -> float:
        """The factor for step ``step``, counted from 1. Past ``total_steps`` it stays at its last value."""
        warmup_steps = round(self.warmup_fraction * self.total_steps)
        if step <= warmup_steps:
            return step / warmup_steps
        return self._after_warmup(step, warmup_steps)

    def _after_warmup(self, step: int, warmup_steps: int) -> float:
        if self.name == "constant":
            return 1.0
        start = warmup_steps
        if self.name == "wsd":
            start = max(warmup_steps, self.total_steps - round(self.decay_fraction * self.total_steps))
        progress = min(1.0, max(0.0, (step - start) / max(1, self.total_steps - start)))
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if self.name == "cosine" else 1 - progress
        return self.min_ratio + (1 - self.min_ratio) * shape
