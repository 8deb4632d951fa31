"""How long a run will take, said once, after its first steps."""

import logging
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

log = logging.getLogger(__name__)

_MEASURED_STEPS = 3
_SHORT_STEPS = 20  # a shorter run is over before its time is worth a line
_UNITS = (("days", 86_400), ("h", 3_600), ("min", 60))


def time_text(seconds: float) -> str:
    """Seconds in the largest unit of which there are two, as in ``12 min`` or ``2.5 h``; never below one second."""
    for unit, unit_s in _UNITS:
        if seconds >= 2 * unit_s:
            amount = seconds / unit_s
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{max(1, seconds):.0f} s"


def rate_text(step_s: float) -> str:
    """Seconds of one step as steps in a second, or the other way round where a step takes longer than that."""
    rate = 1 / step_s
    if rate <= 1:
        return f"{step_s:.3g} s a step"
    return f"{rate:,.0f} steps/s" if rate >= 100 else f"{rate:.2g} steps/s"


class TimeEstimate:
    """A sink that prints one line after the fourth step of a start: what the steps of this start will take.

    The first step is left out: it compiles, caches and allocates. Evaluations and checkpoints to come are not in it,
    but for those between the steps that are measured.

    Args:
        total_steps: steps of the whole run.
        start_step: the step that this process starts from.
        clock: seconds from any origin.
    """

    def __init__(
        self, console: Console, *, total_steps: int, start_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._steps = total_steps - start_step
        self._first = start_step + 2
        self._last = self._first + _MEASURED_STEPS - 1
        self._clock = clock
        self._started_s = 0.0

    def emit(self, event: dict[str, Any]) -> None:
        """Look at the clock after the first step, print after the last one that is measured."""
        if event["event"] != "train" or self._steps < _SHORT_STEPS:
            return
        if event["step"] == self._first - 1:
            self._started_s = self._clock()
        elif event["step"] == self._last:
            self._print((self._clock() - self._started_s) / _MEASURED_STEPS)

    def _print(self, step_s: float) -> None:
        if step_s <= 0:  # a clock that stands still
            return
        line = (
            f"time        about {time_text(self._steps * step_s)} for {self._steps:,} steps at {rate_text(step_s)} "
            f"(measured over steps {self._first:,} to {self._last:,})"
        )
        self._console.print(line, soft_wrap=True)
        log.info("%s", line)

    def close(self) -> None:
        """Nothing is open."""
