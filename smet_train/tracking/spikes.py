"""Loss spikes after topology updates: how high, and for how long (what arXiv 2606.00888 calls instability).

After an update that follows step s, with baseline b and horizon H:

    peak = max loss(s + 1 .. s + H)        spike = peak - b
    recovery_steps = first k with s + k at or after the peak and loss(s + k) <= b, or null

A loss that is not a number counts as infinite. Adam's first steps of a cold weight grow until about the 12th with
beta2 = 0.999 but hardly with 0.95, so every event states beta2, and the horizon should be 20 steps or more.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any


class SpikeMeter:
    """Measures one stream of losses, ``source`` "train" or "probe".

    Args:
        horizon_steps: length of the window after an update.
        baseline_steps: losses averaged for the baseline, where none is given.
        beta2: stated in every event.
    """

    def __init__(self, *, source: str, horizon_steps: int, baseline_steps: int, beta2: float) -> None:
        self.source = source
        self.horizon_steps = horizon_steps
        self.baseline_steps = baseline_steps
        self.beta2 = beta2
        self._recent: list[float] = []
        self._update_step: int | None = None
        self._baseline = math.nan
        self._window: list[float] = []

    @property
    def open(self) -> bool:
        """Whether losses after an update are being watched."""
        return self._update_step is not None

    def lacks(self, step: int) -> bool:
        """Whether a window is open that the loss of ``step`` belongs to and has not come to."""
        return self._update_step is not None and step > self._update_step + len(self._window)

    def observe(self, step: int, loss: float) -> list[dict[str, Any]]:
        """Take the loss of ``step``, computed before that step's update; returns the event of a window that closes."""
        loss = math.inf if math.isnan(loss) else loss
        self._recent = [*self._recent, loss][-self.baseline_steps :]
        if self._update_step is None:
            return []
        self._window.append(loss)
        return self._close() if step >= self._update_step + self.horizon_steps else []

    def update(self, step: int, *, baseline: float | None = None) -> list[dict[str, Any]]:
        """A topology update followed ``step``. ``baseline`` is the loss right before it; without one it is the mean of
        the last ``baseline_steps`` losses. A window still open is closed first and returned."""
        events = self._close()
        if baseline is None and not self._recent:
            return events
        self._update_step = step
        self._baseline = sum(self._recent) / len(self._recent) if baseline is None else baseline
        return events

    def finish(self) -> list[dict[str, Any]]:
        """The event of a window cut short by the end of the run."""
        return self._close()

    def _close(self) -> list[dict[str, Any]]:
        step, window = self._update_step, self._window
        self._update_step, self._window = None, []
        if step is None or not window:
            return []
        peak = max(window)
        at = window.index(peak)
        recovered = next((k for k in range(at, len(window)) if window[k] <= self._baseline), None)
        return [
            {
                "event": "spike",
                "step": step,
                "source": self.source,
                "baseline": self._baseline,
                "peak": peak,
                "spike": peak - self._baseline,
                "peak_step": step + 1 + at,
                "recovery_steps": None if recovered is None else recovered + 1,
                "horizon_steps": len(window),
                "beta2": self.beta2,
            }
        ]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: with it an interrupted measurement goes on as if nothing had happened."""
        return {
            "recent": list(self._recent),
            "update_step": self._update_step,
            "baseline": self._baseline if self.open else None,
            "window": list(self._window),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the windows that :meth:`state_dict` wrote down."""
        self._recent = [float(loss) for loss in state["recent"]]
        self._update_step = None if state["update_step"] is None else operator.index(state["update_step"])
        self._baseline = math.nan if state["baseline"] is None else float(state["baseline"])
        self._window = [float(loss) for loss in state["window"]]
