"""Checkpoints in torch's distributed format: written by all processes, read by any number, as safe as others."""

import enum
import errno
import io
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from smet_train.config.schema import Config
from smet_train.errors import CheckpointError, ConfigError, TrainingError
from smet_train.export.write import export
from smet_train.initial import open_pretrained
from smet_train.job import run_training
from smet_train.sparse.shards import local, split_as
from smet_train.train import checkpoint, distributed_checkpoint, files, loop
from smet_train.train.checkpoint import checkpoint_steps, load_checkpoint, what_is_wrong
from smet_train.train.distributed_checkpoint import StoredParts, write_parts
from smet_train.train.processes import Processes
from smet_train.train.resume import choose_checkpoint
from smet_train.train.run import Run
from smet_train.train.state import model_tensors
from smet_train.train.stored_model import stored_model
from smet_train.trained import open_trained
from tests.distributed.ranks import (
    FOUR,
    apart,
    each,
    end,
    in_double_precision,
    losses,
    patched,
    said,
    start,
    stop_after,
    train,
    weights,
)
from tests.faults.trials import digest

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
SHARDED = ("train.parallel=fsdp", "train.micro_batch_size=1", "checkpoint.interval=2", "train.eval_interval=0")
FILES = (".metadata", "__0_0.distcp", "__1_0.distcp")


def gather_nothing_in_a_save() -> None:
    """End this process if it makes anything whole while it saves."""
    save = loop.save
    saving: list[bool] = []

    def note(run: Run, *, last: bool = False) -> bool:
        saving.append(True)
        try:
            return save(run, last=last)
        finally:
            saving.pop()

    def watched(gather: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: os._exit(5) if saving else gather(*given, **named)

    patched("smet_train.train.loop.save", note)
    patched("torch.distributed.all_gather", watched(torch.distributed.all_gather))
    patched("torch.distributed.tensor.DTensor.full_tensor", watched(DTensor.full_tensor))


@pytest.fixture(scope="module")
def saved(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    train(quick_config(*SHARDED), folder, 2, gather_nothing_in_a_save)
    assert said(folder) == ""
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / "step_00000006"


def test_the_files_are_those_of_torch(saved: Path, tmp_path: Path) -> None:
    checkpoint = newest(saved)
    assert tuple(sorted(path.name for path in (checkpoint / "sharded").iterdir())) == FILES
    dcp_to_torch_save(checkpoint / "sharded", tmp_path / "all.pt")
    theirs = torch.load(tmp_path / "all.pt", weights_only=True)
    ours = load_checkpoint(checkpoint)
    for name, tensor in theirs.items():
        part, _, key = name.partition(".")
        assert torch.equal(tensor, ours.tensors[part][key])
    assert "model.model.embed_tokens.weight" in theirs
    assert sum(name.endswith(".age") for name in theirs) == 14
    parts = [(checkpoint / "sharded" / name).stat().st_size for name in FILES[1:]]
    assert sum(tensor.nbytes for tensor in theirs.values()) < sum(parts)
    assert max(parts) < 0.55 * sum(parts)


def test_what_one_process_asks_of_a_checkpoint_it_is_told(
    saved: Path, quick_config: QuickConfig, tmp_path: Path
) -> None:
    held = weights(saved, 6)
    trained = open_trained(saved)
    assert all(torch.equal(tensor, held[name]) for name, tensor in model_tensors(trained.model).items())
    assert export(saved, "hf", tmp_path / "exported").step == 6
    stored = stored_model(newest(saved))
    assert set(stored.names) == held.keys()
    for name, tensor in held.items():
        assert name in stored
        assert not tensor.is_floating_point() or stored.shape(name) == tuple(tensor.shape)
        assert torch.equal(stored.read(name), tensor)
    assert "model.embed_tokens.bias" not in stored
    config = quick_config(f"model.init_from={saved}", "train.steps=1")
    assert open_pretrained(config).sparse
    assert run_training(config, tmp_path / "begun") == 0


def read_parts_alone() -> None:
    """End this process if it reads any tensor whole that was split."""
    read = StoredParts.read

    def watched(self: StoredParts, names: Any) -> dict[str, Tensor]:
        return os._exit(5) if list(names) else read(self, [])

    patched("smet_train.train.distributed_checkpoint.StoredParts.read", watched)


@pytest.mark.parametrize("size", [2, 4])
def test_a_process_reads_its_part_alone(saved: Path, quick_config: QuickConfig, tmp_path: Path, size: int) -> None:
    config = quick_config("train.parallel=fsdp", *FOUR, f"checkpoint.resume={newest(saved)}")
    train(config, tmp_path, size, read_parts_alone)
    for part in ("model", "optimizer", "topology"):
        before, after = (load_checkpoint(newest(folder)).tensors[part] for folder in (saved, tmp_path))
        assert all(torch.equal(held, after[name]) for name, held in before.items())


def test_two_processes_then_one_then_four_are_as_one(quick_config: QuickConfig, tmp_path: Path) -> None:
    whole = quick_config("train.parallel=fsdp", *FOUR)
    train(whole, tmp_path / "whole", 1, in_double_precision)
    parts = tmp_path / "parts"
    for size, stop in ((2, partial(stop_after, 2, signal.SIGUSR1)), (1, partial(stop_after, 4, signal.SIGUSR1))):
        train(whole, parts, size, in_double_precision, stop)
    train(whole, parts, 4, in_double_precision)
    assert checkpoint_steps(parts / "checkpoints") == [3, 5, 6]
    assert losses(parts) == pytest.approx(losses(tmp_path / "whole"), abs=1e-10)
    assert apart(weights(parts, 6), weights(tmp_path / "whole", 6)) < 1e-10


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "../random.safetensors", "../state.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flip", "missing"])
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_used(
    copy: Path, name: str, damage: Callable[[Path], None]
) -> None:
    file = newest(copy) / "sharded" / name
    damage(file)
    assert file.name in str(what_is_wrong(newest(copy)))
    chosen = choose_checkpoint("auto", copy)
    assert chosen is not None
    assert chosen.name == "step_00000004"


class Foreign:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


class Attribute:
    """Its pickle asks for an attribute."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.asked


class OfPython3112(pickle.Pickler):
    """Pickles members of enumerations as Python did before 3.11.4."""

    def reducer_override(self, held: Any) -> Any:
        return (getattr, (type(held), held.name)) if isinstance(held, enum.Enum) else NotImplemented


def test_a_description_that_an_older_python_wrote_is_read(copy: Path) -> None:
    path = newest(copy) / "sharded" / ".metadata"
    before = pickle.loads(path.read_bytes())
    content = io.BytesIO()
    OfPython3112(content).dump(before)
    assert b"getattr" in content.getvalue()
    path.write_bytes(content.getvalue())
    found, _ = distributed_checkpoint._read_description(path.parent)
    assert found == before


def holding(what: Any) -> bytes:
    return pickle.dumps(Metadata({"a": what}))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            pickle.dumps(Foreign()),
            "does not describe tensors (it names posix.system, which no known torch does)",
        ),
        (
            holding(Foreign()),
            "does not describe tensors (it names posix.system, which no known torch does)",
        ),
        (
            b"ctorch.distributed.checkpoint.metadata\nos.system\n.",
            "does not describe tensors "
            "(it names torch.distributed.checkpoint.metadata.os.system, which no known torch does)",
        ),
        (
            b"ctorch\nload\n.",
            "does not describe tensors (it names torch.load, which no known torch does)",
        ),
        (
            pickle.dumps(Attribute(torch.Size, "numel")),
            "does not describe tensors (it names 'numel' of <class 'torch.Size'>, which no known torch does)",
        ),
        (
            pickle.dumps(Attribute(_MEM_FORMAT_ENCODING, "mro")),
            "does not describe tensors (it names 'mro' of <enum '_MEM_FORMAT_ENCODING'>, which no known torch does)",
        ),
        (pickle.dumps([1]), "does not describe tensors ('list' object has no attribute 'state_dict_metadata')"),
        (b"", "does not describe tensors (pickle exhausted before seeing STOP)"),
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "does not describe tensors (it numbers what it holds up to 2147483647)"),
        (holding(StorageMeta()), "does not describe tensors alone"),
    ],
    ids=range(10),
)
def test_a_description_that_names_anything_else_is_refused(copy: Path, content: bytes, told: str) -> None:
    """Even if somebody has made all checksums fit."""
    (newest(copy) / "sharded" / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(newest(copy))
    assert f"sharded/.metadata {told}" in str(caught.value)
    with pytest.raises(ConfigError, match="does not describe tensors"):
        stored_model(newest(copy))


def test_a_description_that_leads_elsewhere_or_tells_of_more_than_there_is(copy: Path) -> None:
    path = newest(copy) / "sharded" / ".metadata"
    before = pickle.loads(path.read_bytes())
    names = [part.relative_path for part in before.storage_data.values()]
    part = next(iter(before.storage_data.values()))
    part.relative_path = f"../../{names[0]}"
    path.write_bytes(pickle.dumps(before))
    with pytest.raises(CheckpointError, match="is no plain file name"):
        load_checkpoint(newest(copy))
    part.relative_path = names[0]
    next(iter(before.state_dict_metadata.values())).size = torch.Size([1 << 40])
    path.write_bytes(pickle.dumps(before))
    with pytest.raises(CheckpointError, match=r"it tells of [\d,]+ bytes, and its files have"):
        load_checkpoint(newest(copy))


def test_tensors_are_read_without_their_pickle_running_anything(copy: Path) -> None:
    folder = newest(copy) / "sharded"
    stored = stored_model(newest(copy))
    content = io.BytesIO()
    torch.save(Foreign(), content)
    for name in FILES[1:]:
        size = (folder / name).stat().st_size
        (folder / name).write_bytes((content.getvalue() * (size // len(content.getvalue()) + 1))[:size])
    with pytest.raises(CheckpointError, match="sharded can't be read"):
        load_checkpoint(newest(copy))
    with pytest.raises(ConfigError, match="sharded can't be read"):
        stored.read("model.embed_tokens.weight")


class FullAtStep(files.Disk):
    """Has no room for more than a few bytes of the checkpoint of one step."""

    def __init__(self, step: int) -> None:
        self.folder = f".writing-step_{step:08d}"

    def create(self, path: Path) -> io.FileIO:
        return Full(path, "xb") if self.folder in path.parts else super().create(path)


class Full(io.FileIO):
    def write(self, part: Any) -> int:
        if self.tell() > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(part[:100])


def fill_up(step: int) -> None:
    files.disk = FullAtStep(step)


def fail_in_one(processes: Processes) -> None:
    def fail() -> None:
        if not processes.leads:
            raise KeyError("a name")

    kind = TrainingError if processes.leads else KeyError
    with pytest.raises(kind, match="a name") as caught:
        processes.each(fail)
    assert not processes.leads or "another process of this run has failed: KeyError" in str(caught.value)
    processes.add_up(torch.ones(1))  # they are in step


def test_an_error_that_nobody_foresaw_is_heard_by_all() -> None:
    each(2, fail_in_one)


def run_out_of_memory(at_step: int) -> None:
    finish = checkpoint._finish

    def out_of_memory(working: Path, target: Path, step: int, *others: Any) -> None:
        if step == at_step:
            raise MemoryError("no room for the codes")
        finish(working, target, step, *others)

    patched("smet_train.train.checkpoint._finish", out_of_memory)


def fail_afterwards(at_step: int) -> None:
    save = checkpoint.save_checkpoint

    def failing(folder: Path, step: int, *others: Any) -> Path:
        written = save(folder, step, *others)
        if step == at_step:
            raise MemoryError("no room for the folder's names")
        return written

    patched("smet_train.train.saver.save_checkpoint", failing)


def test_a_background_error_of_one_process_alone_ends_all_processes(quick_config: QuickConfig, tmp_path: Path) -> None:
    """All make the save that notices it, in the same group of processes."""
    config = quick_config(*SHARDED, "checkpoint.asynchronous=true")
    assert end(start(config, tmp_path, 2, of={0: partial(fail_afterwards, 4)})) == [1, 1], said(tmp_path)
    assert said(tmp_path).count("MemoryError: no room for the folder's names") == 1
    assert checkpoint_steps(tmp_path / "checkpoints") == [2, 4, 6]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_that_is_not_of_the_disk_ends_all_processes(
    quick_config: QuickConfig, tmp_path: Path, asynchronous: bool
) -> None:
    """In the leader alone, while the others wait for it; in the background the next save is made nevertheless."""
    config = quick_config(*SHARDED, f"checkpoint.asynchronous={asynchronous}")
    assert end(start(config, tmp_path, 2, of={0: partial(run_out_of_memory, 4)})) == [1, 1], said(tmp_path)
    assert said(tmp_path).count("MemoryError: no room for the codes") == 1
    assert checkpoint_steps(tmp_path / "checkpoints") == ([2, 6] if asynchronous else [2])
    train(config, tmp_path, 2)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_process_is_one_error_of_all(
    quick_config: QuickConfig, tmp_path: Path, asynchronous: bool, rank: int
) -> None:
    config = quick_config(*SHARDED, f"checkpoint.asynchronous={asynchronous}")
    assert end(start(config, tmp_path, 2, of={rank: partial(fill_up, 4)})) == [1, 1], said(tmp_path)
    assert said(tmp_path).count("smet-train:") == 1
    assert "step 4 could not be written" in said(tmp_path)
    assert "No space left on device; older checkpoints are intact" in said(tmp_path)
    # in the background it is noticed at the next save, which is made nevertheless
    assert checkpoint_steps(tmp_path / "checkpoints") == ([2, 6] if asynchronous else [2])
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if what_is_wrong(path)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_fails_in_one_process_may_be_a_warning(
    quick_config: QuickConfig, saved: Path, tmp_path: Path, asynchronous: bool
) -> None:
    config = quick_config(*SHARDED, f"checkpoint.asynchronous={asynchronous}", "checkpoint.on_error=warn")
    assert end(start(config, tmp_path, 2, of={1: partial(fill_up, 4)})) == [0, 0], said(tmp_path)
    assert said(tmp_path).count("training goes on") == 1
    assert checkpoint_steps(tmp_path / "checkpoints") == [2, 6]
    assert digest(tmp_path, 6) == digest(saved, 6)


def write_after_the_next_step() -> None:
    """Hold what is written in the background until the run has moved on."""
    write, report_step = distributed_checkpoint.write_parts, loop.report_step
    reached: list[int] = [0]

    def report(run: Run, *numbers: float) -> None:
        report_step(run, *numbers)
        reached[0] = run.state.step

    def late(folder: Path, *others: Any) -> Any:
        step = int(folder.parent.name[-8:])
        while step < 6 and reached[0] <= step:  # the last step
            time.sleep(0.01)
        return write(folder, *others)

    patched("smet_train.train.loop.report_step", report)
    patched("smet_train.train.distributed_checkpoint.write_parts", late)


def test_in_the_background_a_copy_is_written(quick_config: QuickConfig, saved: Path, tmp_path: Path) -> None:
    train(quick_config(*SHARDED, "checkpoint.asynchronous=true"), tmp_path, 2, write_after_the_next_step)
    for step in (2, 4, 6):
        assert digest(tmp_path, step) == digest(saved, step)


def die_restoring() -> None:
    """SIGKILL to this process where its parts of the saved index are to be looked at with those of the others."""
    patched("smet_train.train.state.whole", lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def test_a_process_that_dies_as_a_checkpoint_is_restored_ends_the_others_in_one_line(
    quick_config: QuickConfig, tmp_path: Path
) -> None:
    train(quick_config(*SHARDED, "train.steps=2"), tmp_path, 2)
    statuses = end(start(quick_config(*SHARDED), tmp_path, 2, of={1: die_restoring}))
    assert statuses == [1, -signal.SIGKILL]
    assert "another process of this run has ended" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


def die_writing(step: int) -> None:
    """SIGKILL to this process while it writes its part of the checkpoint of ``step``."""
    write = distributed_checkpoint._NewFile.write

    def die(self: distributed_checkpoint._NewFile, part: Any) -> int:
        if f"step_{step:08d}" in str(self._file.name):
            write(self, part[:10])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, part)

    patched("smet_train.train.distributed_checkpoint._NewFile.write", die)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_in_a_save_the_run_goes_on_bit_for_bit(
    quick_config: QuickConfig, saved: Path, tmp_path: Path, asynchronous: bool, rank: int
) -> None:
    config = quick_config(*SHARDED, f"checkpoint.asynchronous={asynchronous}")
    statuses = end(start(config, tmp_path, 2, of={rank: partial(die_writing, 4)}))
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] == 1
    assert "another process of this run has ended" in said(tmp_path)
    assert checkpoint_steps(tmp_path / "checkpoints") == [2]
    train(config, tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000002",
        "step_00000004",
        "step_00000006",
    ]
    for step in (4, 6):
        assert what_is_wrong(tmp_path / f"checkpoints/step_{step:08d}") is None
    assert digest(tmp_path, 6) == digest(saved, 6)


class Recording(files.Disk):
    """Notes in a file what reaches the disk, in its order."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def note(self, call: str) -> None:
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{call}\n")

    def sync(self, path: Path) -> None:
        self.note(f"sync {path.name}")
        super().sync(path)

    def rename(self, path: Path, target: Path) -> None:
        self.note(f"rename to {target.name}")
        super().rename(path, target)


def record(notes: Path) -> None:
    files.disk = Recording(notes)


def test_files_are_on_disk_before_the_folder_gets_its_name(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config(*SHARDED, "checkpoint.interval=0")
    notes = [tmp_path / f"calls of {rank}" for rank in range(2)]
    processes = start(config, tmp_path, 2, of={rank: partial(record, notes[rank]) for rank in range(2)})
    assert end(processes) == [0, 0], said(tmp_path)
    first, second = (path.read_text(encoding="utf-8").splitlines() for path in notes)
    assert second == ["sync __1_0.distcp"]
    calls = first[first.index("sync __0_0.distcp") :]
    assert calls[:3] == ["sync __0_0.distcp", "sync .metadata.tmp", "rename to .metadata"]
    assert calls[calls.index("sync manifest.json") :] == [
        "sync manifest.json",
        "sync sharded",
        "sync .writing-step_00000006",
        "rename to step_00000006",
        "sync checkpoints",
    ]


def see_no_folder() -> None:
    """As on a machine whose file system is another."""
    is_dir = Path.is_dir
    patched("pathlib.Path.is_dir", lambda path: path.name != "sharded" and is_dir(path))


def test_a_folder_that_one_process_does_not_see_is_told(quick_config: QuickConfig, tmp_path: Path) -> None:
    assert end(start(quick_config(*SHARDED), tmp_path, 2, of={1: see_no_folder})) == [1, 1], said(tmp_path)
    assert said(tmp_path).count("process 1 does not see") == 1
    assert "let hydra.run.dir= be on a file system that all machines see" in said(tmp_path)


def break_in(name: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    patched(f"smet_train.train.distributed_checkpoint._Parts.{name}", fail)


@pytest.mark.parametrize("name", ["create_local_plan", "lookup_object"])
def test_what_is_no_error_of_the_disk_is_raised_as_it_is(quick_config: QuickConfig, tmp_path: Path, name: str) -> None:
    config = quick_config(*SHARDED, "checkpoint.on_error=warn")
    assert end(start(config, tmp_path, 2, of={1: partial(break_in, name)})) == [1, 1]
    assert "RuntimeError: a bug" in said(tmp_path)


def save_less_than_there_are_processes(folder: Path, processes: Processes) -> None:
    """Of these tensors some processes hold nothing."""
    mesh = init_device_mesh("cpu", (processes.size,))
    wholes = {f"model.{n}": torch.arange(1.0, n + 1) for n in (1, 2, 4)}
    split = {name: distribute_tensor(every, mesh, [Shard(0)], src_data_rank=None) for name, every in wholes.items()}
    written = write_parts(folder, {name: (held, held.to_local()) for name, held in split.items()}, processes)
    assert written.keys() == {path.name for path in folder.iterdir()}
    stored = StoredParts(folder)
    for name, tensor in stored.read(wholes).items():
        assert torch.equal(tensor, wholes[name])
    targets = {name: split_as(torch.zeros_like(wholes[name]), held) for name, held in split.items()}
    for name, tensor in stored.read_into(wholes, targets).items():
        assert tensor is targets[name]
        assert torch.equal(local(tensor), local(split[name]))
    others = {name: split_as(torch.zeros_like(wholes[name]).long(), held) for name, held in split.items()}
    for name, tensor in stored.read_into(wholes, others).items():  # as it was stored, not as the targets are
        assert tensor.dtype == torch.float32
        assert torch.equal(local(tensor), local(split[name]))


def test_a_process_may_hold_nothing_of_a_tensor(tmp_path: Path) -> None:
    each(3, partial(save_less_than_there_are_processes, tmp_path))


def find_no_number() -> None:
    patched("smet_train.train.loop.first_not_finite", lambda _: "model: lm_head.weight")


def test_a_part_that_is_not_finite_in_one_process_is_not_saved(quick_config: QuickConfig, tmp_path: Path) -> None:
    assert end(start(quick_config(*SHARDED), tmp_path, 2, of={1: find_no_number})) == [1, 1], said(tmp_path)
    assert "the state to be saved is not finite (model: lm_head.weight)" in said(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    [kept] = (tmp_path / "inspect").iterdir()
    assert what_is_wrong(kept) is None
