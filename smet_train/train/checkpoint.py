"""Checkpoints on disk: one folder a step, checked by its manifest, found again, rotated, and read back.

``manifest.json`` has size and checksum of every file of the checkpoint, its step and the version that wrote it, and a
checksum of itself. It is written last, so a folder without one was never finished. What is split over processes lies in
a folder of its own, in torch's distributed format (:mod:`smet_train.train.distributed_checkpoint`).
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from torch import Tensor

from smet_train import __version__, opening
from smet_train.errors import CheckpointError, ConfigError
from smet_train.sparse.shards import is_sharded
from smet_train.train import files
from smet_train.train.files import Written
from smet_train.train.processes import ALONE, Processes
from smet_train.train.snapshot import Snapshot, flat

log = logging.getLogger(__name__)

FORMAT, FORMAT_OF_PARTS = 3, 4  # without and with what is split over processes
_READABLE = (2, 3, 4)  # 2 had no coded tensors
_PARTS = "sharded"
_STATE = "state.json"
_MANIFEST = "manifest.json"
_EXPORTED = ("sparse.json", "config.json")  # one of them lies in an exported folder that model.init_from can read
_PREFIX = "step_"


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints are kept: the ``newest``, and those of the steps that ``every`` divides (0: none)."""

    newest: int
    every: int = 0

    def doomed(self, steps: list[int]) -> list[int]:
        """Those of the ascending ``steps`` that go."""
        return [step for step in steps[: -self.newest] if not (self.every and step % self.every == 0)]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending; working folders and strangers are passed over."""
    names = (path.name for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
    steps = (int(digits) for name in names if (digits := name.removeprefix(_PREFIX)).isdecimal())
    # each once: step_10 is a stranger beside step_00000010
    return sorted(step for step in set(steps) if checkpoint_path(folder, step).is_dir())


def checkpoint_path(folder: Path, step: int) -> Path:
    """``folder/step_XXXXXXXX`` of a step, whether it exists or not."""
    return folder / f"{_PREFIX}{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder``, good or not, or None."""
    steps = checkpoint_steps(folder)
    return checkpoint_path(folder, steps[-1]) if steps else None


def save_checkpoint(folder: Path, step: int, snapshot: Snapshot, keep: Keep, processes: Processes = ALONE) -> Path:
    """Write ``snapshot`` as ``folder/step_XXXXXXXX`` and delete the checkpoints that are not to be kept.

    One that can't be deleted is warned of: the new one is there all the same.

    Args:
        processes: those that hold the parts of what is split, each of which calls this and writes its own. The leading
            one writes all else.

    Raises:
        CheckpointError: in all ``processes``, if it can't be written (disk full, no permission); older checkpoints are
            left as they are, and what was written of this one is deleted as far as possible.
        ConfigError: alike, if one of ``processes`` does not see the folder.
    """
    target = checkpoint_path(folder, step)

    def begin() -> Path:
        with _failure_told(step, target):
            return _new_working_folder(target, snapshot)

    def finish() -> None:
        with _failure_told(step, target):
            _finish(working, target, step, snapshot, parts)

    try:
        working, parts = processes.told(begin), {}
        if snapshot.is_split:
            with _failure_told(step, target):
                parts = _write_parts(working, snapshot, processes)
        processes.told(finish)
    except (CheckpointError, ConfigError) as error:  # the same in all processes, unlike one that has gone
        error.told = not processes.leads
        if processes.leads:
            files.remove_leftovers(folder)
        raise
    if processes.leads:
        _rotate(folder, keep, target)
    return target


@contextmanager
def _failure_told(step: int, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {target}: {error}; older checkpoints are intact, "
            "make room or permission and start the same command again",
            exit_status=1,
        ) from error


def _new_working_folder(target: Path, snapshot: Snapshot) -> Path:
    working = files.new_working_folder(target)
    if snapshot.is_split:
        files.disk.make_folder(working / _PARTS)
    return working


def _write_parts(working: Path, snapshot: Snapshot, processes: Processes) -> dict[str, Written]:
    """Write what is split, each process its part."""
    from smet_train.train.distributed_checkpoint import write_parts

    written = write_parts(working / _PARTS, snapshot.split(), processes)
    return {f"{_PARTS}/{name}": file for name, file in written.items()}


def _finish(working: Path, target: Path, step: int, snapshot: Snapshot, parts: Mapping[str, Written]) -> None:
    """Write what every process has whole, and the manifest, and publish."""
    written, held = dict(parts), snapshot.held
    for part, tensors in snapshot.tensors.items():
        name = f"{part}.safetensors"
        unsplit = {key: held[part][key] for key, tensor in tensors.items() if not is_sharded(tensor)}
        if unsplit or not tensors:
            written[name] = files.write_tensors(working / name, unsplit, coded=True)
    written[_STATE] = files.write_json(working / _STATE, snapshot.plain)
    files.write_json(working / _MANIFEST, _manifest(step, written, FORMAT_OF_PARTS if parts else FORMAT))
    if parts:
        files.disk.sync(working / _PARTS)
    files.publish(working, target)


def _rotate(folder: Path, keep: Keep, written: Path) -> None:
    try:
        steps = checkpoint_steps(folder)
    except OSError as error:
        log.warning("no older checkpoint is deleted, because %s can't be read: %s", folder, error)
        return
    for old in keep.doomed(steps):
        if checkpoint_path(folder, old) == written:  # in inspect/, where an earlier attempt may have come further
            continue
        try:
            files.remove_folder(checkpoint_path(folder, old))
        except OSError as error:
            log.warning("the checkpoint of step %d, which is not to be kept, can't be deleted: %s", old, error)


def _manifest(step: int, written: Mapping[str, Written], format_: int) -> dict[str, Any]:
    content = {
        "format": format_,
        "version": __version__,
        "step": step,
        "files": {name: asdict(file) for name, file in written.items()},
    }
    return {**content, "checksum": _own_checksum(content)}


def _own_checksum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def what_is_wrong(path: Path) -> str | None:
    """Why the checkpoint at ``path`` can't be used: a file and what is the matter with it; None if it is as written.

    Reads the whole checkpoint.
    """
    try:
        listed = _read_manifest(path)
        for name, expected in listed.items():
            opening.require_regular(path / name)
            size = (path / name).stat().st_size
            if size != expected.n_bytes:
                return f"{name} has {size} bytes, not {expected.n_bytes}"
        for name, expected in listed.items():
            if files.read_checksum(path / name) != expected:
                return f"{name} differs from its checksum"
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or path).name} can't be read ({error.strerror})"
    return None


def _read_manifest(path: Path) -> dict[str, Written]:
    """The files of a checkpoint.

    Raises:
        CheckpointError: what is wrong with the manifest.
        OSError: if it can't be read.
    """
    try:
        manifest = opening.read_object(path / _MANIFEST)
        checksum = manifest.pop("checksum")
        whole = checksum == _own_checksum(manifest)
        found = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{_MANIFEST} is missing{_if_from_before_manifests(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{_MANIFEST} is damaged ({error})") from None
    if not whole:
        raise CheckpointError(f"{_MANIFEST} differs from its checksum")
    if found not in _READABLE:
        read = ", ".join(map(str, _READABLE))
        raise CheckpointError(f"{_MANIFEST} has format {found}, this version of smet-train reads {read}")
    with opening.malformed(_MANIFEST, CheckpointError, "take another checkpoint"):
        if checkpoint_path(path.parent, manifest["step"]).name != path.name:
            raise CheckpointError(f"{_MANIFEST} is that of step {manifest['step']}")
        return {_name_of(name): _written(file) for name, file in manifest["files"].items()}


def _name_of(name: str) -> str:
    """Of a file in a checkpoint, or in its folder of parts."""
    opening.plain_name(name.removeprefix(f"{_PARTS}/"))
    return name


def _written(file: Mapping[str, Any]) -> Written:
    n_bytes, checksum = file["n_bytes"], file["checksum"]
    if type(n_bytes) is not int or type(checksum) is not str:
        raise TypeError("a size is no whole number, or a checksum no text")
    return Written(n_bytes, checksum)


def _if_from_before_manifests(path: Path) -> str:
    try:
        earlier = opening.read_object(path / _STATE)["format"] == 1
    except (OSError, ValueError, KeyError, TypeError):
        earlier = False
    return ": it is of an earlier version of smet-train, which wrote none; go on with that version" if earlier else ""


def require_checkpoint(path: Path) -> None:
    """Raises CheckpointError if ``path`` is something else than a checkpoint, good or not."""
    if not (path / _MANIFEST).is_file() and not (path / _STATE).is_file():
        if any((path / name).is_file() for name in _EXPORTED):
            raise CheckpointError(
                f"{path} is an exported model, not a checkpoint: its README.md says how to load it; to go on from its "
                f"weights write model.init_from={path}, and for all else give the run that it comes from"
            )
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {_MANIFEST}; give a folder like "
            "<run folder>/checkpoints/step_00000500"
        )


def gone(path: Path) -> str:
    """What to say of a checkpoint that was there a moment ago."""
    return (
        f"{path} was deleted while it was read, as a run that trains does with all but its newest checkpoints "
        "(checkpoint.keep); give its run folder, or a checkpoint that checkpoint.keep_every keeps"
    )


def _unusable(path: Path, error: Exception) -> CheckpointError:
    if not path.is_dir():
        return CheckpointError(gone(path), exit_status=1)
    return CheckpointError(f"{path} can't be used: {error}; resume from another checkpoint")


def load_plain(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        CheckpointError: if ``path`` is no checkpoint, or can't be read.
    """
    require_checkpoint(path)
    try:
        _read_manifest(path)
        return opening.read_object(path / _STATE)
    except (CheckpointError, OSError, ValueError) as error:
        raise _unusable(path, error) from error


def load_checkpoint(
    path: Path, into: Mapping[str, Mapping[str, Tensor]] | None = None, *, only: str | None = None
) -> Snapshot:
    """Read a checkpoint back, written by however many processes.

    Args:
        into: a process's tensors. Of what is split there and was split when it was written, its part alone is read,
            and into these where the dtypes agree; a split tensor of another shape has no memory. All else is whole.
        only: the file whose tensors are read, for instance ``model``, and no others.

    Raises:
        CheckpointError: see :func:`load_plain`; also if a file is not as it was written.
    """
    plain = load_plain(path)
    try:
        names = [Path(name) for name in _read_manifest(path) if name.endswith(".safetensors")]
        wanted = [name for name in names if only in (None, name.stem)]
        tensors = {name.stem: files.read_tensors(path / name) for name in wanted}
        folder = parts_folder(path)
        if folder is not None:
            for name, tensor in _read_parts(folder, into or {}, only).items():
                part, _, key = name.partition(".")
                tensors.setdefault(part, {})[key] = tensor
    except (CheckpointError, OSError, ValueError, SafetensorError) as error:
        raise _unusable(path, error) from error
    return Snapshot(tensors, plain)


def parts_folder(path: Path) -> Path | None:
    """Where a checkpoint holds what was split over processes when it was written; None if nothing was.

    Raises:
        CheckpointError, OSError: if its manifest can't be read.
    """
    listed = _read_manifest(path)
    return path / _PARTS if any(name.startswith(f"{_PARTS}/") for name in listed) else None


def _read_parts(folder: Path, into: Mapping[str, Mapping[str, Tensor]], only: str | None) -> dict[str, Tensor]:
    from smet_train.train.distributed_checkpoint import StoredParts

    stored = StoredParts(folder)
    names = [name for name in stored.described if only in (None, name.partition(".")[0])]
    return stored.read_into(names, flat(into))
