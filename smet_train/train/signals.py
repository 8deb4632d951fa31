"""Signals that ask a run to stop: the first is noted and obeyed at a step's end, the second ends the process."""

import os
import signal
import sys
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context manager that turns SIGINT and SIGTERM into ``reason``, the signal's name, or None.

    While ``interruptible`` is true (start-up: there is nothing to save yet) the first signal ends the process with the
    shell's convention, 128 + signal number. In the loop it only sets ``reason``. A second signal always ends the
    process at once; the last checkpoint is then the newest state.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.interruptible = True
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.reason is not None:
            os._exit(128 + number)
        self.reason = name
        if self.interruptible:
            sys.exit(128 + number)
        print(
            f"\n{name}: finishing this step, then saving. Send it again to stop at once.", file=sys.stderr, flush=True
        )
