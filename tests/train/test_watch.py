"""Signs of life of other processes, by a clock that is given."""

import os
import threading
import time

import pytest

from smet_train.train import watch
from smet_train.train.watch import Silences, told_if_long


def looked(silences: Silences, until_s: float, since_s: float = 0.0) -> tuple[list[str], str | None]:
    """All that is told from second to second."""
    told: list[str] = []
    for second in range(int(since_s), int(until_s) + 1):
        lines, lost = silences.look(float(second))
        told += lines
        if lost is not None:
            return told, lost
    return told, None


def test_a_silence_is_told_once_and_so_is_its_end() -> None:
    silences = Silences([1, 2], 0.0, longest_s=1800)
    silences.hear({1: b"node7 1", 2: b"node8 1"}, 0.0)
    for second in range(0, 60, 5):
        silences.hear({1: b"node7 1", 2: b"node8 %d" % second}, float(second))
    lines, lost = looked(silences, 70)
    assert lost is None
    assert len(lines) == 1
    assert "nothing was heard of process 1 (node7) for 60 s: frozen, or cut off from here" in lines[0]
    assert "no sign of life for 30 minutes (train.max_silence_minutes)" in lines[0]
    silences.hear({1: b"node7 2", 2: b"node8 71"}, 71.0)
    assert silences.look(71.0) == (["process 1 (node7) is there again after 71 s"], None)
    assert looked(silences, 120, 72) == ([], None)


def test_a_silence_that_is_too_long_ends_the_run() -> None:
    silences = Silences(range(1, 7), 0.0, longest_s=1800)
    lines, lost = looked(silences, 1800)
    assert len(lines) == 1
    assert lost is not None
    assert lost.startswith("nothing was heard of processes 1, 2, 3, 4 and 2 more for 30 minutes")


def test_one_that_is_done_is_not_missed() -> None:
    silences = Silences([1], 0.0, longest_s=1800)
    silences.hear({1: b"gone"}, 5.0)
    assert looked(silences, 4000) == ([], None)


def test_a_process_that_was_stopped_itself_blames_nobody() -> None:
    """kill -STOP of all of a run, or a laptop that slept."""
    silences = Silences([1], 0.0, longest_s=1800)
    assert looked(silences, 10) == ([], None)
    assert looked(silences, 8059, 8000) == ([], None)
    assert len(looked(silences, 8061, 8060)[0]) == 1


def test_a_wait_that_is_long_is_told_and_one_that_is_too_long_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() if status == 1 else None)
    with told_if_long(lambda: "for the others", 60.0):
        pass
    assert capsys.readouterr().err == ""
    with told_if_long(lambda: "for the others", 0.1):
        assert ended.wait(5)
    assert [line[:52] for line in capsys.readouterr().err.splitlines()] == [
        "smet-train: still waiting for the others; for 0.0016",
        "smet-train: waited for the others for 0.00166667 min",
    ]


class Frozen:
    """A store that never answers, as one whose machine has gone."""

    def __init__(self) -> None:
        self.sets = 0

    def set(self, _key: str, _value: object) -> None:
        self.sets += 1

    def wait(self, _keys: list[str]) -> None:
        pass

    def multi_get(self, _keys: list[str]) -> list[bytes]:
        time.sleep(3600)
        return []


def test_a_store_that_never_answers_is_a_silence_of_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda _status: ended.set())
    monkeypatch.setattr(watch, "_LOOK_S", 0.01)
    with watch.watching(Frozen(), 1, 2, 0.2):
        assert ended.wait(5)
    lines = capsys.readouterr().err.splitlines()
    assert "nothing was heard of process 0 for 0 s: frozen, or cut off" in lines[0]
    assert "nothing was heard of process 0 for 0.00333333 minutes" in lines[1]
