"""Saving in the background: the same files, never a torn state, and no error that nobody hears of."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from smet_train.errors import CheckpointError
from smet_train.train import checkpoint, files, saver
from smet_train.train.checkpoint import Keep, checkpoint_steps, load_checkpoint, save_checkpoint
from smet_train.train.saver import Saver
from smet_train.train.snapshot import Snapshot


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds every save until it is set."""
    opened, real = threading.Event(), checkpoint.save_checkpoint

    def save_later(*arguments: Any) -> Path:
        assert opened.wait(30)
        return real(*arguments)

    monkeypatch.setattr(saver, "save_checkpoint", save_later)
    return opened


def test_what_is_saved_is_the_state_when_save_was_called(tmp_path: Path, gate: threading.Event) -> None:
    values, ages = torch.ones(5), [3]
    writer = Saver(tmp_path, Keep(2), asynchronous=True)
    writer.save(1, Snapshot({"model": {"values": values}}, {"ages": ages}))
    values.zero_()
    ages[0] = 4
    assert checkpoint_steps(tmp_path) == []
    gate.set()
    writer.close()
    saved = load_checkpoint(tmp_path / "step_00000001")
    assert saved.tensors["model"]["values"].equal(torch.ones(5))
    assert saved.plain["ages"] == [3]


def test_the_memory_of_a_copy_serves_the_next_one_as_long_as_the_tensors_are_alike(tmp_path: Path) -> None:
    writer = Saver(tmp_path, Keep(9), asynchronous=True)
    states = [{"a": torch.full((5,), 1.0)}, {"a": torch.full((5,), 2.0)}, {"a": torch.ones(4), "b": torch.ones(2)}]
    memory = []
    for step, tensors in enumerate(states, 1):
        writer.save(step, Snapshot({"model": tensors}, {}))
        writer.close()
        memory.append(writer._copies["model"]["a"].data_ptr())
    assert memory[0] == memory[1]
    for step, tensors in enumerate(states, 1):
        saved = load_checkpoint(tmp_path / f"step_{step:08d}").tensors["model"]
        assert saved.keys() == tensors.keys()
        assert all(saved[name].equal(tensors[name]) for name in tensors)


def test_questions_about_checkpoints_wait_for_the_one_being_written(tmp_path: Path, gate: threading.Event) -> None:
    writer = Saver(tmp_path, Keep(2), asynchronous=True)
    for ask in (lambda: writer.has(1), lambda: writer.newest() == tmp_path / "step_00000001"):
        gate.clear()
        writer.save(1, Snapshot({}, {}))
        threading.Timer(0.05, gate.set).start()
        assert ask()


class Full(files.Disk):
    def write(self, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_is_raised_at_the_next_call_at_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    writer = Saver(tmp_path, Keep(2), asynchronous=asynchronous)
    monkeypatch.setattr(files, "disk", Full())

    def save_twice() -> None:
        writer.save(1, Snapshot({}, {}))
        writer.save(2, Snapshot({}, {}))

    with pytest.raises(CheckpointError, match="could not be written.*No space left"):
        save_twice()
    monkeypatch.undo()
    writer.save(3, Snapshot({}, {}), last=True)
    assert checkpoint_steps(tmp_path) == [3]


def failed_in_the_background(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Saver:
    """A saver whose save of step 1 met a full disk; there is room again."""
    writer = Saver(folder, Keep(2), asynchronous=True)
    with monkeypatch.context() as patch:
        patch.setattr(files, "disk", Full())
        writer.save(1, Snapshot({}, {}))
        assert not writer.has(1)
    return writer


def test_the_state_in_which_an_error_of_the_background_is_raised_is_written_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one failed save would cost the steps of two intervals."""
    writer = failed_in_the_background(tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match="step 1 could not be written.*No space left"):
        writer.save(2, Snapshot({}, {}))
    assert checkpoint_steps(tmp_path) == [2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_save_may_be_a_warning_but_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asynchronous: bool
) -> None:
    writer = Saver(tmp_path, Keep(2), asynchronous=asynchronous, warn=True)
    writer.save(1, Snapshot({}, {}))
    writer.close()
    monkeypatch.setattr(files, "disk", Full())
    writer.save(2, Snapshot({}, {}))
    assert not writer.has(2)
    with pytest.raises(CheckpointError, match="step 4 could not be written"):
        writer.save(4, Snapshot({}, {}), last=True)
    told = "the last one is written nevertheless" if asynchronous else "training goes on"
    assert len([record for record in caplog.records if told in record.message]) == 1
    assert checkpoint_steps(tmp_path) == [1]


def test_the_last_state_is_written_though_the_save_before_it_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that was full for a moment costs no more than one save, in the background too."""
    writer = failed_in_the_background(tmp_path, monkeypatch)
    writer.save(2, Snapshot({}, {}), last=True)
    assert checkpoint_steps(tmp_path) == [2]
    assert "step 1 could not be written" in caplog.text
    writer.save(3, Snapshot({"model": {"z": torch.zeros(2, dtype=torch.complex64)}}, {}))
    with pytest.raises(KeyError):
        writer.save(4, Snapshot({}, {}), last=True)
    assert checkpoint_steps(tmp_path) == [2, 4]


def test_what_is_written_is_kept_though_a_later_step_is_there(tmp_path: Path) -> None:
    """As beside the checkpoints, where the bad state of an attempt is kept that came less far than the one before."""
    for step in (900, 700):
        assert save_checkpoint(tmp_path, step, Snapshot({}, {}), Keep(1)).is_dir()


def test_what_is_no_error_of_the_disk_is_never_a_warning(tmp_path: Path) -> None:
    writer = Saver(tmp_path, Keep(2), asynchronous=True, warn=True)
    writer.save(1, Snapshot({"model": {"z": torch.zeros(2, dtype=torch.complex64)}}, {}))
    with pytest.raises(KeyError):
        writer.save(2, Snapshot({}, {}))
    assert checkpoint_steps(tmp_path) == [2]


def test_an_error_that_no_save_comes_after_is_told_when_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Saver(tmp_path, Keep(2), asynchronous=True)
    monkeypatch.setattr(files, "disk", Full())
    writer.save(1, Snapshot({}, {}))
    assert writer.newest() is None
    writer.close()
    writer.close()
    (record,) = caplog.records
    assert "step 1 could not be written" in record.message
