"""What asks a run to stop: a signal or its time budget, obeyed at a step's end; a second signal ends the process."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from smet_train.offspring import STOP_SIGNALS

_BUDGET = "train.max_hours"
_REASONS = (None, _BUDGET, *(number.name for number in STOP_SIGNALS))


class StopRequest:
    """Context manager that, once armed, turns the stop signals and the end of the budget into a ``reason``.

    Until :meth:`arm` is called (start-up: there is nothing to save yet) signals act as if it did not exist: they end
    the process at once, however deep in a library it is. Then the first one only sets ``reason``, and a second one
    ends the process at once; the last checkpoint is then the newest state. A signal that the process was started to
    ignore (SIGHUP under ``nohup``) stays ignored.

    Args:
        budget_s: seconds from now after which the run should stop; None for no limit.
        echo_s: for so many seconds the first signal, sent again, is the same one.
    """

    def __init__(
        self,
        budget_s: float | None = None,
        *,
        echo_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._echo_s = echo_s
        self._sent_s = 0.0
        self._ends_s = None if budget_s is None else clock() + budget_s
        self._signal: str | None = None  # that this process was sent
        self._taken: str | None = None  # from another process, or the end of the budget
        self._previous: dict[signal.Signals, object] = {}

    @property
    def reason(self) -> str | None:
        """The signal's name or "train.max_hours"; None as long as the run may go on."""
        known = self._taken or self._signal
        if known is None and self._ends_s is not None and self._clock() >= self._ends_s:
            return _BUDGET
        return known

    @property
    def code(self) -> int:
        """The reason as a number, 0 for none: what processes of one run tell each other."""
        return _REASONS.index(self.reason)

    def take(self, code: int) -> None:
        """Stop for the reason that another process has. A signal that this one is sent afterwards is its first."""
        if self._taken is None and code:
            self._taken = _REASONS[code]

    def arm(self) -> None:
        """From here on a signal is noted instead of ending the process."""
        for number in STOP_SIGNALS:
            if number not in self._previous and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            if number.name != self._signal or not self._echo_s:  # an echo may come while the process ends
                signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._signal is not None:
            if name == self._signal and self._clock() < self._sent_s + self._echo_s:
                return
            if number == signal.SIGXCPU:  # which the system sends each second from then on
                return
            os._exit(128 + number)
        self._signal, self._sent_s = name, self._clock()
        after = f" after {self._echo_s:g} s" if self._echo_s else ""
        again = "SIGTERM" if number == signal.SIGXCPU else "it again"
        text = f"\n{name}: finishing this step, then saving. Send {again}{after} to stop at once.\n"
        with suppress(OSError):  # the terminal, or who read the output, may have gone: often that is the signal's cause
            # Not print: the signal may have come in the middle of another print.
            os.write(2, text.encode())
