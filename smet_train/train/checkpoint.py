"""Checkpoints on disk: one folder a step, found again, rotated, and read back with clear errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from smet_train.errors import CheckpointError
from smet_train.train import files

FORMAT = 1
_STATE = "state.json"
_PREFIX = "step_"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a run needs to continue: ``tensors`` by file and name, ``plain`` JSON-able values."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    plain: Mapping[str, Any]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending; working folders and strangers are passed over."""
    names = (path.name for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
    return sorted(int(name.removeprefix(_PREFIX)) for name in names if name.removeprefix(_PREFIX).isdecimal())


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder``, or None."""
    steps = checkpoint_steps(folder)
    return checkpoint_path(folder, steps[-1]) if steps else None


def save_checkpoint(folder: Path, step: int, snapshot: Snapshot, keep: int) -> Path:
    """Write ``snapshot`` as ``folder/step_XXXXXXXX`` and delete all but the newest ``keep`` checkpoints.

    Raises:
        CheckpointError: if it can't be written (disk full, no permission); older checkpoints are left as they are.
    """
    target = checkpoint_path(folder, step)
    try:
        working = files.new_working_folder(target)
        for name, tensors in snapshot.tensors.items():
            files.write_tensors(working / f"{name}.safetensors", tensors)
        files.write_json(working / _STATE, {"format": FORMAT, **snapshot.plain})
        files.publish(working, target)
        for old in checkpoint_steps(folder)[:-keep]:
            files.remove_folder(checkpoint_path(folder, old))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {target}: {error}; older checkpoints are intact, "
            "make room or permission and start the same command again",
            exit_status=1,
        ) from error
    return target


def load_plain(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        CheckpointError: if ``path`` is no checkpoint, is damaged, or was written by a later version.
    """
    state_path = path / _STATE
    if not state_path.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {_STATE}; give a folder like <run folder>/checkpoints/step_00000500"
        )
    try:
        plain = json.loads(state_path.read_text(encoding="utf-8"))
        found = plain["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{state_path} is damaged ({error}); resume from another checkpoint") from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {found}, this version of smet-train reads {FORMAT}")
    return dict(plain)


def load_checkpoint(path: Path) -> Snapshot:
    """Read a checkpoint back.

    Raises:
        CheckpointError: see :func:`load_plain`; also if a tensor file can't be read.
    """
    plain = load_plain(path)
    try:
        tensors = {file.stem: files.read_tensors(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); resume from another checkpoint") from error
    return Snapshot(tensors, plain)
