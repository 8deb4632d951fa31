"""Every file-system call of a save as the last one: of the process, of the machine, or of the room on the disk."""

import errno
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smet_train.errors import CheckpointError
from smet_train.train import files
from smet_train.train.checkpoint import Keep, load_checkpoint, save_checkpoint
from smet_train.train.resume import choose_checkpoint
from smet_train.train.snapshot import Snapshot
from tests.faults.power import Machine, RecordingDisk

RUN = "outputs/run"
SAVES = 5  # with two kept, the last three rotate


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        {"model": {"values": torch.full((40,), float(step))}, "optimizer": {"age": torch.full((40,), step).byte()}},
        {"step": step},
    )


def record(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RecordingDisk, list[int]]:
    """All calls of five saves into a new run folder, and how many had been made when each save returned."""
    disk, returned = RecordingDisk(root), []
    root.mkdir()
    monkeypatch.setattr(files, "disk", disk)
    for folder in ("outputs", RUN):
        disk.make_folder(root / folder)  # as whoever starts the run does, without flushing it
    for step in range(1, SAVES + 1):
        save_checkpoint(root / RUN / "checkpoints", step, snapshot(step), Keep(2))
        returned.append(len(disk.calls))
    monkeypatch.undo()
    return disk, returned


def recovered(folder: Path, at_least: int) -> str | None:
    """Whether a run that starts in ``folder`` finds the checkpoint of step ``at_least`` or a later one, whole."""
    files.remove_leftovers(folder / "checkpoints")
    chosen = choose_checkpoint("auto", folder)
    if chosen is None:
        return None if at_least == 0 else "nothing is found"
    step = int(chosen.name.removeprefix("step_"))
    loaded, expected = load_checkpoint(chosen), snapshot(step)
    if step < at_least:
        return f"step {step} is found, but {at_least} was saved"
    if loaded.plain != expected.plain:
        return f"{chosen} holds {loaded.plain}"
    whole = all(
        loaded.tensors[part][name].equal(tensor)
        for part, held in expected.tensors.items()
        for name, tensor in held.items()
    )
    return None if whole else f"{chosen} has other tensors"


FATES: dict[str, list[str | None]] = {"process": [None], "machine": ["none", "all", *["some"] * 4]}


@pytest.mark.parametrize("dies", FATES)
def test_whatever_call_is_the_last_a_whole_checkpoint_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Any, dies: str
) -> None:
    root = tmp_path / "disk"
    disk, returned = record(root, monkeypatch)
    names = {
        "process": "a crash or a torn write at every file-system call: recovered",
        "machine": "power lost at every file-system call, unflushed data too: recovered",
    }
    with campaign(names[dies], unit="intervals lost") as tally:
        for number in tally.some(list(range(len(disk.calls) + 1)), few=40):
            saved = sum(number >= calls for calls in returned)
            began = min(SAVES, saved + 1)
            for fate in FATES[dies]:
                for last in torn(disk, number) if dies == "process" else [disk.calls[:number]]:
                    draw, machine = random.Random(f"{number} {fate} {tally.tried}"), Machine(root)
                    for call in last:
                        machine.do(call)
                    found = tmp_path / "found"
                    machine.build(found, fate, draw)
                    tally.note(problem(number, fate, recovered(found / RUN, saved)), began - saved)
                    shutil.rmtree(found)


def torn(disk: RecordingDisk, number: int) -> Iterator[list[Any]]:
    """The first ``number`` calls; if the last is a write also with parts of it alone."""
    before = disk.calls[:number]
    yield before
    if before and before[-1].kind == "write":
        for share in (0.0, 0.3, 0.99):
            last = before[-1]
            yield [*before[:-1], replace(last, content=last.content[: int(share * len(last.content))])]


def problem(number: int, fate: str | None, what: str | None) -> str | None:
    return what and f"call {number}, {fate}: {what}"


def test_control_without_flushes_power_loss_breaks_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials can fail: a save that flushes nothing is not recovered from."""
    root, broken = tmp_path / "disk", 0
    disk, returned = record(root, monkeypatch)
    for number in range(len(disk.calls) + 1):
        machine = Machine(root)
        for call in disk.calls[:number]:
            if call.kind != "sync":
                machine.do(call)
        machine.build(tmp_path / "found", "some", random.Random(number))
        try:
            broken += recovered(tmp_path / "found" / RUN, sum(number >= calls for calls in returned)) is not None
        except CheckpointError:
            broken += 1
        shutil.rmtree(tmp_path / "found")
    assert broken > 20


class Unflushed(files.Disk):
    """A disk of a machine that keeps its power: what is not flushed is there all the same."""

    def sync(self, path: Path) -> None:
        path.stat()


class FailingOnce(Unflushed):
    """Fails at one call of all below ``root``, the one of ``number``; at none if that is 0."""

    def __init__(self, root: Path, number: int) -> None:
        self.root = root
        self.left = number
        for name in ("write", "sync", "rename", "make_folder", "remove_file", "remove_empty_folder"):
            setattr(self, name, self._counted(getattr(super(), name)))

    def _counted(self, call: Callable[..., None]) -> Callable[..., None]:
        def count_down(*arguments: Any) -> None:
            self.left -= arguments[0].is_relative_to(self.root)
            if self.left == 0:
                raise OSError(errno.EIO, "Input/output error")
            call(*arguments)

        return count_down


def test_an_error_from_any_call_costs_one_save_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Any
) -> None:
    """And the next save mends what it left."""
    counting = FailingOnce(tmp_path, 0)
    monkeypatch.setattr(files, "disk", counting)
    for step in range(1, SAVES + 1):
        save_checkpoint(tmp_path / "run" / "checkpoints", step, snapshot(step), Keep(2))
    shutil.rmtree(tmp_path / "run")
    with campaign("an error from every file-system call: one save lost at most", unit="saves") as tally:
        for number in tally.some(list(range(1, 1 - counting.left)), few=40):
            run, lost, wrong = tmp_path / "run", [], None
            monkeypatch.setattr(files, "disk", FailingOnce(tmp_path, number))
            for step in range(1, SAVES + 1):
                try:
                    save_checkpoint(run / "checkpoints", step, snapshot(step), Keep(2))
                except CheckpointError:
                    lost.append(step)
                saved = max(set(range(step + 1)) - set(lost))
                wrong = wrong or recovered(run, saved)
            monkeypatch.undo()
            save_checkpoint(run / "checkpoints", SAVES + 1, snapshot(SAVES + 1), Keep(2))
            files.remove_leftovers(run / "checkpoints")  # as the next start does
            names = sorted(path.name for path in (run / "checkpoints").iterdir())
            if len(names) != 2 or names[-1] != f"step_{SAVES + 1:08d}":
                wrong = f"it leaves {names}"
            tally.note(problem(number, "an error", wrong), len(lost))
            shutil.rmtree(run)


class SmallDisk(Unflushed):
    """Has room for so many bytes."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes

    def write(self, path: Path, parts: Iterator[memoryview | bytes]) -> None:
        def fitting() -> Iterator[bytes]:
            for part in parts:
                piece = bytes(part)[: self.room_bytes]
                self.room_bytes -= len(piece)
                yield piece
                if len(piece) < len(part):
                    raise OSError(errno.ENOSPC, "No space left on device")

        super().write(path, fitting())


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Any) -> None:
    save_checkpoint(tmp_path / "checkpoints", 1, snapshot(1), Keep(2))
    size_bytes = sum(file.stat().st_size for file in (tmp_path / "checkpoints" / "step_00000001").iterdir())
    with campaign("disk full at a byte: one message, the checkpoint before intact") as tally:
        for number in tally.some(list(range(64)), few=16):
            monkeypatch.setattr(files, "disk", SmallDisk(number * size_bytes // 64))
            wrong: str | None = "it did not fail"
            try:
                save_checkpoint(tmp_path / "checkpoints", 2, snapshot(2), Keep(2))
            except CheckpointError as error:
                wrong = None if "No space left on device; older checkpoints are intact" in str(error) else str(error)
            monkeypatch.undo()
            names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
            if names != ["step_00000001"]:
                wrong = f"it leaves {names}"
            tally.note(problem(number, "full", wrong or recovered(tmp_path, 1)))


def test_with_warn_a_full_disk_does_not_stop_a_run(
    quick_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from smet_train.job import run_training

    class FullFor(files.Disk):
        """Full while the second save is written."""

        def write(self, path: Path, parts: Iterator[memoryview | bytes]) -> None:
            if "step_00000004" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(path, parts)

    monkeypatch.setattr(files, "disk", FullFor())
    overrides = ["checkpoint.interval=2", "checkpoint.on_error=warn", "train.steps=6", "train.eval_interval=0"]
    assert run_training(quick_config(*overrides), tmp_path / "warned") == 0
    assert sorted(path.name for path in (tmp_path / "warned" / "checkpoints").iterdir()) == [
        "step_00000002", "step_00000006"
    ]  # fmt: skip
    assert len([record for record in caplog.records if "training goes on" in record.message]) == 1
    with pytest.raises(CheckpointError, match="step 4 could not be written"):
        run_training(quick_config(*overrides, "checkpoint.on_error=stop"), tmp_path / "stopped")
