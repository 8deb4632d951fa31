import json
import os
from pathlib import Path

import pytest
import torch

from smet_train.errors import CheckpointError
from smet_train.train import files
from smet_train.train.checkpoint import (
    Snapshot,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint,
    load_plain,
    save_checkpoint,
)


def snapshot(step: int = 5) -> Snapshot:
    tensors = {"model": {"a": torch.arange(4.0), "b.index": torch.tensor([1, 2], dtype=torch.int32)}}
    return Snapshot(tensors, {"step": step, "data": {"epoch": 0}})


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, snapshot(), keep=3)
    assert path == tmp_path / "step_00000005"
    loaded = load_checkpoint(path)
    assert loaded.plain == {"format": 1, "step": 5, "data": {"epoch": 0}}
    for name, tensor in snapshot().tensors["model"].items():
        assert loaded.tensors["model"][name].equal(tensor)
        assert loaded.tensors["model"][name].dtype == tensor.dtype


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step, snapshot(step), keep=2)
    assert checkpoint_steps(tmp_path) == [9, 10]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000009", "step_00000010"]


def test_a_step_saved_twice_holds_the_second(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, snapshot(5), keep=3)
    save_checkpoint(tmp_path, 5, snapshot(6), keep=3)
    assert load_plain(tmp_path / "step_00000005")["step"] == 6


def test_working_folders_and_strangers_are_not_checkpoints(tmp_path: Path) -> None:
    for name in (".writing-step_00000009", "step_x", "superseded_00000008", ".deleting-step_00000001"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000007").touch()
    assert checkpoint_steps(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000007", "step_x", "superseded_00000008"]


STEPS_OF_A_SAVE = ["new_working_folder", "write_tensors", "write_json", "publish", "remove_folder"]


@pytest.mark.parametrize("failing", STEPS_OF_A_SAVE)
def test_a_save_that_fails_anywhere_leaves_the_newest_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, snapshot(step), keep=2)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, failing, fail)
    with pytest.raises(CheckpointError, match="step 3 could not be written.*No space left") as caught:
        save_checkpoint(tmp_path, 3, snapshot(3), keep=2)
    assert caught.value.exit_status == 1
    monkeypatch.undo()
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert load_checkpoint(newest).plain["step"] == int(newest.name[-1])
    save_checkpoint(tmp_path, 3, snapshot(3), keep=2)
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_files_are_on_disk_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        order.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        order.append(f"rename to {Path(target).name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save_checkpoint(tmp_path, 1, snapshot(), keep=1)
    assert order == [
        "sync model.safetensors",
        "sync state.json",
        "sync .writing-step_00000001",
        "rename to step_00000001",
        f"sync {tmp_path.name}",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "state.json").unlink(), "is not a checkpoint: it has no state.json"),
        (lambda path: (path / "state.json").write_text("{"), "state.json is damaged"),
        (lambda path: (path / "state.json").write_text("{}"), "state.json is damaged"),
        (
            lambda path: (path / "state.json").write_text(json.dumps({"format": 99})),
            "format 99, this version .* reads 1",
        ),
        (lambda path: (path / "model.safetensors").write_bytes(b"short"), "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: object, message: str) -> None:
    path = save_checkpoint(tmp_path, 1, snapshot(), keep=1)
    damage(path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
