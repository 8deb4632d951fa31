"""Checkpoints on disk: one folder a step, checked by its manifest, found again, rotated, and read back.

``manifest.json`` has size and checksum of every file of the checkpoint, its step and the version that wrote it, and a
checksum of itself. It is written last, so a folder without one was never finished.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from torch import Tensor

from smet_train import __version__
from smet_train.errors import CheckpointError
from smet_train.train import files
from smet_train.train.files import Written

log = logging.getLogger(__name__)

FORMAT = 3
_READABLE = (2, 3)  # 2 had no coded tensors
_STATE = "state.json"
_MANIFEST = "manifest.json"
_PREFIX = "step_"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a run needs to continue: ``tensors`` by file and name, ``plain`` JSON-able values."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    plain: Mapping[str, Any]


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
    return folder / f"{_PREFIX}{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder``, good or not, or None."""
    steps = checkpoint_steps(folder)
    return checkpoint_path(folder, steps[-1]) if steps else None


def save_checkpoint(folder: Path, step: int, snapshot: Snapshot, keep: Keep) -> Path:
    """Write ``snapshot`` as ``folder/step_XXXXXXXX`` and delete the checkpoints that are not to be kept.

    One that can't be deleted is warned of: the new one is there all the same.

    Raises:
        CheckpointError: if it can't be written (disk full, no permission); older checkpoints are left as they are, and
            what was written of this one is deleted as far as possible.
    """
    target = checkpoint_path(folder, step)
    try:
        working = files.new_working_folder(target)
        written = {
            f"{name}.safetensors": files.write_tensors(working / f"{name}.safetensors", tensors)
            for name, tensors in snapshot.tensors.items()
        }
        written[_STATE] = files.write_json(working / _STATE, snapshot.plain)
        files.write_json(working / _MANIFEST, _manifest(step, written))
        files.publish(working, target)
    except OSError as error:
        files.remove_leftovers(folder)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {target}: {error}; older checkpoints are intact, "
            "make room or permission and start the same command again",
            exit_status=1,
        ) from error
    _rotate(folder, keep)
    return target


def _rotate(folder: Path, keep: Keep) -> None:
    for old in keep.doomed(checkpoint_steps(folder)):
        try:
            files.remove_folder(checkpoint_path(folder, old))
        except OSError as error:
            log.warning("the checkpoint of step %d, which is not to be kept, can't be deleted: %s", old, error)


def _manifest(step: int, written: Mapping[str, Written]) -> dict[str, Any]:
    content = {
        "format": FORMAT,
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
        manifest = json.loads((path / _MANIFEST).read_bytes())
        checksum = manifest.pop("checksum")
        whole = checksum == _own_checksum(manifest)
        found = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{_MANIFEST} is missing{_if_from_before_manifests(path)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{_MANIFEST} is damaged ({error})") from None
    if not whole:
        raise CheckpointError(f"{_MANIFEST} differs from its checksum")
    if found not in _READABLE:
        read = " and ".join(map(str, _READABLE))
        raise CheckpointError(f"{_MANIFEST} has format {found}, this version of smet-train reads {read}")
    if checkpoint_path(path.parent, manifest["step"]).name != path.name:
        raise CheckpointError(f"{_MANIFEST} is that of step {manifest['step']}")
    return {name: Written(**file) for name, file in manifest["files"].items()}


def _if_from_before_manifests(path: Path) -> str:
    try:
        earlier = json.loads((path / _STATE).read_bytes())["format"] == 1
    except (OSError, ValueError, KeyError, TypeError):
        earlier = False
    return ": it is of an earlier version of smet-train, which wrote none; go on with that version" if earlier else ""


def require_checkpoint(path: Path) -> None:
    """Raises CheckpointError if ``path`` is something else than a checkpoint, good or not."""
    if not (path / _MANIFEST).is_file() and not (path / _STATE).is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {_MANIFEST}; give a folder like "
            "<run folder>/checkpoints/step_00000500"
        )


def load_plain(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        CheckpointError: if ``path`` is no checkpoint, or can't be read.
    """
    require_checkpoint(path)
    try:
        _read_manifest(path)
        return dict(json.loads((path / _STATE).read_bytes()))
    except (CheckpointError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} can't be used: {error}; resume from another checkpoint") from error


def load_checkpoint(path: Path) -> Snapshot:
    """Read a checkpoint back.

    Raises:
        CheckpointError: see :func:`load_plain`; also if a file is not as it was written.
    """
    plain = load_plain(path)
    try:
        names = [Path(name) for name in _read_manifest(path) if name.endswith(".safetensors")]
        tensors = {name.stem: files.read_tensors(path / name) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be used: {error}; resume from another checkpoint") from error
    return Snapshot(tensors, plain)
