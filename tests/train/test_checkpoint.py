import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smet_train.errors import CheckpointError
from smet_train.train import checkpoint, files
from smet_train.train.checkpoint import (
    Keep,
    _own_checksum,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint,
    load_plain,
    save_checkpoint,
    what_is_wrong,
)
from smet_train.train.snapshot import Snapshot


def snapshot(step: int = 5) -> Snapshot:
    tensors = {"model": {"a": torch.arange(4.0), "b.index": torch.tensor([1, 2], dtype=torch.int32)}}
    return Snapshot(tensors, {"step": step, "data": {"epoch": 0}})


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, snapshot(), Keep(3))
    assert path == tmp_path / "step_00000005"
    loaded = load_checkpoint(path)
    assert loaded.plain == {"step": 5, "data": {"epoch": 0}}
    for name, tensor in snapshot().tensors["model"].items():
        assert loaded.tensors["model"][name].equal(tensor)
        assert loaded.tensors["model"][name].dtype == tensor.dtype


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step, snapshot(step), Keep(2))
    assert checkpoint_steps(tmp_path) == [9, 10]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000009", "step_00000010"]


def test_a_step_saved_twice_holds_the_second(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, snapshot(5), Keep(3))
    save_checkpoint(tmp_path, 5, snapshot(6), Keep(3))
    assert load_plain(tmp_path / "step_00000005")["step"] == 6


def test_working_folders_and_strangers_are_not_checkpoints(tmp_path: Path) -> None:
    for name in (".writing-step_00000009", "step_x", "superseded_00000008", ".deleting-step_00000001"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000007").touch()
    (tmp_path / "step_10").mkdir()
    assert checkpoint_steps(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000007",
        "step_10",
        "step_x",
        "superseded_00000008",
    ]


class Failing(files.Disk):
    """Fails in every call of one kind."""

    def __init__(self, call: str) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        setattr(self, call, fail)


def test_a_folder_that_can_not_be_listed_after_a_save_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(_: Path) -> list[int]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(checkpoint, "checkpoint_steps", lost)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, snapshot(step), Keep(1))
    monkeypatch.undo()
    assert checkpoint_steps(tmp_path) == [1, 2, 3]
    assert caplog.text.count("no older checkpoint is deleted") == 3


@pytest.mark.parametrize("failing", ["write", "sync", "rename", "make_folder"])
def test_a_save_that_fails_anywhere_leaves_the_newest_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, snapshot(step), Keep(2))
    monkeypatch.setattr(files, "disk", Failing(failing))
    with pytest.raises(CheckpointError, match="step 3 could not be written.*No space left") as caught:
        save_checkpoint(tmp_path, 3, snapshot(3), Keep(2))
    assert caught.value.exit_status == 1
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]
    assert what_is_wrong(tmp_path / "step_00000002") is None
    save_checkpoint(tmp_path, 3, snapshot(3), Keep(2))
    assert checkpoint_steps(tmp_path) == [2, 3]


class Recording(files.Disk):
    """Notes what reaches the disk, in its order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sync(self, path: Path) -> None:
        self.calls.append(f"sync {path.name}")
        super().sync(path)

    def rename(self, path: Path, target: Path) -> None:
        self.calls.append(f"rename to {target.name}")
        super().rename(path, target)


def test_files_are_on_disk_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording()
    monkeypatch.setattr(files, "disk", recording)
    save_checkpoint(tmp_path, 1, snapshot(), Keep(1))
    assert recording.calls[-6:] == [
        "sync model.safetensors",
        "sync state.json",
        "sync manifest.json",
        "sync .writing-step_00000001",
        "rename to step_00000001",
        f"sync {tmp_path.name}",
    ]


def test_the_first_save_flushes_the_names_of_all_folders_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording()
    monkeypatch.setattr(files, "disk", recording)
    folder = tmp_path / "outputs" / "run" / "checkpoints"
    folder.parent.mkdir(parents=True)
    save_checkpoint(folder, 1, snapshot(), Keep(1))
    assert recording.calls[:3] == ["sync run", "sync outputs", f"sync {tmp_path.name}"]


def test_a_folder_that_may_not_be_read_is_not_ours_to_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(files.Disk):
        def sync(self, path: Path) -> None:
            if path in tmp_path.parents:
                raise PermissionError(errno.EACCES, "Permission denied")
            super().sync(path)

    monkeypatch.setattr(files, "disk", Closed())
    assert what_is_wrong(save_checkpoint(tmp_path, 1, snapshot(), Keep(1))) is None


def test_a_file_system_that_flushes_no_folders_will_do_but_files_must_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, refused = os.fsync, [stat.S_ISDIR]

    def refuse(descriptor: int) -> None:
        if any(kind(os.fstat(descriptor).st_mode) for kind in refused):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    assert what_is_wrong(save_checkpoint(tmp_path, 1, snapshot(), Keep(1))) is None
    refused.append(stat.S_ISREG)
    with pytest.raises(CheckpointError, match="Invalid argument"):
        save_checkpoint(tmp_path, 2, snapshot(), Keep(1))


def test_strangers_inside_a_checkpoint_are_not_read_and_go_with_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, snapshot(1), Keep(1))
    (path / "notes").mkdir()
    (path / "notes" / "a.txt").write_text("x")
    (path / "link").symlink_to(tmp_path / "nowhere")
    (path / "extra.safetensors").write_bytes(b"no tensors")
    assert what_is_wrong(path) is None
    assert list(load_checkpoint(path).tensors) == ["model"]
    save_checkpoint(tmp_path, 2, snapshot(2), Keep(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000002"]


def test_a_checkpoint_that_can_not_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, snapshot(1), Keep(1))
    monkeypatch.setattr(files, "disk", Failing("remove_file"))
    assert what_is_wrong(save_checkpoint(tmp_path, 2, snapshot(2), Keep(1))) is None
    files.remove_leftovers(tmp_path)
    rotated, left = (record.message for record in caplog.records)
    assert "the checkpoint of step 1, which is not to be kept, can't be deleted: [Errno 28]" in rotated
    assert ".deleting-step_00000001 is left of an earlier save and can't be deleted: [Errno 28]" in left
    assert checkpoint_steps(tmp_path) == [2]


def test_a_leftover_of_any_kind_makes_room(tmp_path: Path) -> None:
    (tmp_path / ".writing-step_00000001").write_text("not a folder")
    assert what_is_wrong(save_checkpoint(tmp_path, 1, snapshot(), Keep(1))) is None
    (tmp_path / ".deleting-step_00000009").write_text("not a folder")
    files.remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]


def test_every_other_one_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(1, 11):
        save_checkpoint(tmp_path, step, snapshot(step), Keep(newest=2, every=4))
    assert checkpoint_steps(tmp_path) == [4, 8, 9, 10]


ALL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
              torch.uint16, torch.int8, torch.uint8, torch.bool)  # fmt: skip


def test_tensors_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{dtype} {shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype in ALL_DTYPES
        for shape in ((), (0,), (3,), (2, 3, 5))
    }
    tensors["transposed"] = torch.arange(6.0).view(2, 3).T
    written = files.write_tensors(tmp_path / "x.safetensors", tensors)
    read = files.read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in read.values())
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert files.read_checksum(tmp_path / "x.safetensors") == written


def test_a_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    files.replace_text(path, "old")
    (tmp_path / ".writing-tokenizer.json").write_text("of a process that died")
    monkeypatch.setattr(files, "disk", Failing("rename"))
    with pytest.raises(OSError, match="No space left"):
        files.replace_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]
    monkeypatch.undo()
    files.replace_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]
    assert path.read_text() == "new"


def edit_manifest(path: Path, **changes: object) -> None:
    """Change the manifest and give it the checksum of what it says now."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("checksum")
    manifest |= changes
    (path / "manifest.json").write_text(json.dumps({**manifest, "checksum": _own_checksum(manifest)}))


def before_manifests(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "state.json").write_text(json.dumps({"format": 1, "step": 5}))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    (before_manifests, "manifest.json is missing: it is of an earlier version of smet-train"),
    (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
    (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is damaged"),
    (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    (
        lambda path: edit_manifest(path, format=99),
        "manifest.json has format 99, this version of smet-train reads 2",
    ),
    (lambda path: edit_manifest(path, step=7), "manifest.json is that of step 7"),
    (lambda path: (path / "state.json").unlink(), "state.json can't be read (No such file or directory)"),
    (lambda path: (path / "model.safetensors").write_bytes(b"short"), "model.safetensors has 5 bytes, not"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_a_damaged_checkpoint_is_told_by_file_and_reason(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = save_checkpoint(tmp_path, 5, snapshot(), Keep(1))
    assert what_is_wrong(path) is None
    damage(path)
    assert message in str(what_is_wrong(path))
    with pytest.raises(CheckpointError, match="can't be used"):
        load_checkpoint(path)


def test_a_manifest_of_other_content_differs_from_its_checksum(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, snapshot(), Keep(1))
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 5', '"step": 6'))
    assert what_is_wrong(path) == "manifest.json differs from its checksum"


def test_tensors_that_no_library_reads_are_damage(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, snapshot(), Keep(1))
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="can't be used"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no manifest.json"):
        load_plain(tmp_path)
