import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from smet_train.tracking.shelter import Sheltered

EVENTS = [{"event": "train", "step": step} for step in range(5)]


class Recorder:
    """A sink that remembers, and breaks where it is told to."""

    note = "look here"

    def __init__(self, breaks_at: str = "") -> None:
        self.seen: list[Any] = []
        self.closed = 0
        self.breaks_at = breaks_at

    def emit(self, event: dict[str, Any]) -> None:
        self.seen.append(event)
        self._break("emit")

    def close(self) -> None:
        self.closed += 1
        self._break("close")

    def _break(self, where: str) -> None:
        if where == self.breaks_at:
            raise BrokenPipeError(where)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_history_comes_first_then_events_and_tasks_in_their_order(caplog: pytest.LogCaptureFixture) -> None:
    sink = Recorder()
    shelter = Sheltered("x", lambda: sink, iter(EVENTS[:2]))
    for event in EVENTS[2:]:
        shelter.emit(event)
    shelter.do(lambda sink: sink.seen.append("done"))
    shelter.close()
    assert sink.seen == [*EVENTS, "done"]
    assert sink.closed == 1
    assert shelter.note == "look here"
    assert not warnings(caplog)


@pytest.mark.parametrize("where", ["emit", "close"])
def test_a_sink_that_breaks_is_one_warning_and_is_closed(where: str, caplog: pytest.LogCaptureFixture) -> None:
    sink = Recorder(where)
    shelter = Sheltered("tracking.x", lambda: sink)
    for event in EVENTS:
        shelter.emit(event)
    shelter.close()
    assert len(sink.seen) == (1 if where == "emit" else 5)
    assert sink.closed == 1
    (told,) = warnings(caplog)
    assert told.startswith("tracking.x: it ")
    assert "training goes on without it" in told
    assert "BrokenPipeError" in told


def test_history_that_breaks_is_a_warning_too(caplog: pytest.LogCaptureFixture) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield EVENTS[0]
        raise ValueError("no JSON")

    sink = Recorder()
    Sheltered("x", lambda: sink, torn()).close()
    assert (len(sink.seen), sink.closed, len(warnings(caplog))) == (1, 1, 1)


@pytest.mark.parametrize("error", [ModuleNotFoundError("wandb"), SystemExit(3)])
def test_a_sink_that_can_not_be_opened_is_one_warning(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> Recorder:
        raise error

    shelter = Sheltered("x", missing)
    for event in EVENTS:
        shelter.emit(event)
    shelter.close()
    (told,) = warnings(caplog)
    assert "can't be opened" in told
    assert shelter.note is None


@pytest.mark.parametrize("hangs", ["open", "emit", "close"])
def test_a_sink_that_hangs_holds_nothing_up(hangs: str, caplog: pytest.LogCaptureFixture) -> None:
    """However long it hangs: an hour here, which the test would not survive."""
    awake, abandoned = threading.Event(), []

    class Hanging(Recorder):
        def __init__(self) -> None:
            super().__init__()
            if hangs == "open":
                awake.wait(3600)

        def _break(self, where: str) -> None:
            if where == hangs:
                awake.wait(3600)

    shelter = Sheltered("x", Hanging, abandon=lambda: abandoned.append(True), behind_events=3, close_s=0.1)
    deadline_s = time.monotonic() + 60
    while hangs != "close" and not warnings(caplog) and time.monotonic() < deadline_s:
        shelter.emit(EVENTS[0])
    shelter.emit(EVENTS[0])
    shelter.close()
    assert abandoned == [True]
    (told,) = warnings(caplog)
    assert ("did not end within 0.1 s" if hangs == "close" else "3 events behind") in told
    awake.set()


def test_a_queue_that_is_full_at_the_end_is_no_wait(caplog: pytest.LogCaptureFixture) -> None:
    awake = threading.Event()

    def slow() -> Recorder:
        awake.wait(3600)
        return Recorder()

    shelter = Sheltered("x", slow, behind_events=1, close_s=0.1)
    shelter.emit(EVENTS[0])
    shelter.close()
    assert len(warnings(caplog)) == 1
    awake.set()
