"""A sink that can't stop, slow down or outlive a run, however it breaks."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from smet_train.tracking.sinks import Sink

log = logging.getLogger(__name__)

Task = dict[str, Any] | Callable[[Any], None]
BEHIND_EVENTS = 10_000  # minutes of training; more means that the other side has stopped taking them
CLOSE_S = 60.0


class NotedSink(Sink, Protocol):
    """A sink that says where what it wrote is to be seen: ``note`` is a line for the end of a run."""

    note: str


class Sheltered:
    """Runs a sink in a thread of its own, from its opening to its end.

    Training never waits for it. A sink that can't be opened, raises, or falls ``behind_events`` behind is left out from
    then on, with one warning. Only :meth:`close` waits, ``close_s`` seconds at most.

    Args:
        name: the setting that asked for it; begins its warnings.
        open_sink: makes the sink.
        history: the events before now, which the sink is given first.
        abandon: called if the sink does not end in time, to end what would keep the process from ending.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], NotedSink],
        history: Iterable[dict[str, Any]] = (),
        *,
        abandon: Callable[[], None] = lambda: None,
        behind_events: int = BEHIND_EVENTS,
        close_s: float = CLOSE_S,
    ) -> None:
        self.name = name
        self.note: str | None = None
        self._open_sink = open_sink
        self._history = history
        self._abandon = abandon
        self._close_s = close_s
        self._tasks: queue.Queue[Task | None] = queue.Queue(behind_events)
        self._left_out = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def emit(self, event: dict[str, Any]) -> None:
        """Hand over one event, without waiting."""
        self._hand_over(event)

    def do(self, task: Callable[[Any], None]) -> None:
        """Hand over something to call with the sink once it has had the events before."""
        self._hand_over(task)

    def _hand_over(self, task: Task | None) -> None:
        if self._left_out.is_set():
            return
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            self._leave_out(f"it is {self._tasks.maxsize} events behind")

    def close(self) -> None:
        """Let the sink take what it was handed and end; after ``close_s`` seconds it is left behind, with a warning."""
        self._hand_over(None)
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._leave_out(f"it did not end within {self._close_s:g} s")
            self._abandon()

    def _work(self) -> None:
        try:
            sink = self._open_sink()
        except (Exception, SystemExit) as error:
            self._leave_out(f"it can't be opened ({error!r})")
            return
        try:
            self.note = sink.note
            self._serve(sink)
        except (Exception, SystemExit) as error:
            self._leave_out(f"it failed ({error!r})")
        try:
            sink.close()
        except (Exception, SystemExit) as error:
            self._leave_out(f"it did not end well ({error!r})")

    def _serve(self, sink: NotedSink) -> None:
        for event in self._history:
            sink.emit(event)
            if self._left_out.is_set():
                return
        while not self._left_out.is_set() and (task := self._tasks.get()) is not None:
            task(sink) if callable(task) else sink.emit(task)

    def _leave_out(self, reason: str) -> None:
        """Once for any number of reasons: those that follow the first come from it."""
        if not self._left_out.is_set():
            self._left_out.set()
            log.warning("%s: %s; training goes on without it, and metrics.jsonl has everything", self.name, reason)
