"""Which checkpoint a run starts from, decided from ``checkpoint.resume`` and what its folder holds."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from smet_train import opening
from smet_train.errors import CheckpointError, SmetError
from smet_train.train import files
from smet_train.train.checkpoint import (
    checkpoint_path,
    checkpoint_steps,
    gone,
    load_plain,
    require_checkpoint,
    what_is_wrong,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_ROTATIONS = 100  # while one checkpoint is read
_LONGEST_END_BYTES = 1 << 16  # of a file of metrics, with its last line in it


def choose_checkpoint(resume: str, run_folder: Path, *, check_all: bool = False) -> Path | None:
    """The checkpoint to start from, or None to start at step 0. It is as it was written, by its checksums.

    ``auto`` takes the newest good one of the run folder. ``never`` takes none. A path names a checkpoint, or a run
    folder whose newest good one is taken; once the run has checkpoints of its own that are not older in origin, it goes
    on from those, so that the same command typed again after a crash loses nothing, whatever has become of the other
    checkpoint. A path inside the run folder goes back to it, once; see :func:`set_later_aside`.

    Args:
        check_all: check every checkpoint of the folder and warn of each that can't be used, not only down to the first
            good one.

    Raises:
        CheckpointError: if the path is no checkpoint or is damaged, if no checkpoint of a folder is good, or if
            ``never`` meets a folder that holds a run.
    """
    own_folder = run_folder / "checkpoints"
    if resume == "never":
        if checkpoint_steps(own_folder):
            raise CheckpointError(
                f"checkpoint.resume=never: {run_folder} holds a run already; leave hydra.run.dir out to get a fresh "
                "folder, or give another one"
            )
        return None
    if resume == "auto":
        return newest_good(own_folder, check_all=check_all, own=True)
    path = Path(resume).expanduser()
    inside = own_folder.resolve() in (path.resolve(), path.resolve().parent, path.resolve() / "checkpoints")
    own = newest_good(own_folder, check_all=check_all, own=not inside)
    if own is not None and not inside:
        log.warning("going on from %s, which this run wrote after it had started from %s", own, path)
        return own
    if own is not None and _has_gone_back(own, path):
        log.warning(
            "going on from %s, which this run wrote after it had gone back to %s; to go back once more, move the later "
            "checkpoints away",
            own,
            path,
        )
        return own
    if not path.exists():
        raise CheckpointError(
            f"checkpoint.resume={path} does not exist; write auto, never, or the path of a checkpoint such as "
            "<run folder>/checkpoints/step_00000500"
        )
    return find_checkpoint(path, check_all=check_all)


def newest_good(folder: Path, *, check_all: bool, own: bool) -> Path | None:
    """The newest checkpoint of ``folder`` that is as it was written; None if there are none at all.

    Each one that is passed over gives a warning with the file and what is the matter; in the run's ``own`` folder it is
    renamed to ``broken_XXXXXXXX``, so that its step can be saved again. Nothing is deleted.

    Raises:
        CheckpointError: if there are checkpoints, but none is good; they keep their names then.
    """
    good, broken = _checked(folder, check_all=check_all)
    if good is None and broken:
        told = "; ".join(f"{path.name}: {reason}" for path, reason in broken)
        raise CheckpointError(
            f"no checkpoint in {folder} can be used ({told}); restore one from a copy, or "
            + ("start over with checkpoint.resume=never" if own else "give another checkpoint"),
            exit_status=1,
        )
    for path, reason in broken:
        _tell(path, reason, good)
        if own:
            _set_aside(path, "broken")
    return good


def _checked(
    folder: Path, *, check_all: bool, rotations: int = _MOST_ROTATIONS
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest good checkpoint, and the ones that are not with the reason, newest first; down to it, or all. One that
    its run deletes meanwhile is neither."""
    good: Path | None = None
    broken: list[tuple[Path, str]] = []
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_path(folder, step)
        reason = what_is_wrong(path)
        if reason is not None and not path.is_dir():
            if good is None and rotations > 0:  # its run has newer ones by now
                return _checked(folder, check_all=check_all, rotations=rotations - 1)
        elif reason is not None:
            broken.append((path, reason))
        elif good is None:
            good = path
        if good is not None and not check_all:
            break
    return good, broken


def _tell(path: Path, reason: str, used: Path | None) -> None:
    log.warning("%s can't be used: %s; going on from %s", path, reason, used.name if used else None)


def find_checkpoint(path: Path, *, check_all: bool = False) -> Path:
    """The checkpoint that ``path`` is, or the newest good one of the run folder that it is; nothing is renamed.

    Args:
        check_all: warn of each checkpoint beside it that can't be used.

    Raises:
        CheckpointError: if there is none, or the one that is named is damaged; the message says which file.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a run folder, or a checkpoint such as <run folder>/checkpoints/step_00000500"
        )
    for folder in (path, path / "checkpoints"):
        newest = newest_good(folder, check_all=check_all, own=False)
        if newest is not None:
            return newest
    if (path / "config.yaml").is_file():
        raise CheckpointError(f"{path} is a run folder without a checkpoint yet; let it train until it has saved one")
    require_checkpoint(path)
    reason = what_is_wrong(path)
    if reason is not None:
        raise CheckpointError(f"{path} can't be used: {reason}; give another checkpoint", exit_status=1)
    if check_all:
        for other, reason in _checked(path.parent, check_all=True)[1]:
            _tell(other, reason, path)
    return path


def read_found(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of :func:`find_checkpoint`'s; of the next one if its run deletes it meanwhile.

    Raises:
        CheckpointError: as :func:`find_checkpoint`; also if the checkpoint that ``path`` names itself is deleted.
        SmetError: of ``read``.
    """
    for _ in range(_MOST_ROTATIONS):
        checkpoint = find_checkpoint(path)
        try:
            return read(checkpoint)
        except SmetError:
            if checkpoint.is_dir():
                raise
            if checkpoint == path:
                break
    raise CheckpointError(gone(path), exit_status=1)


def _set_aside(path: Path, instead_of_step: str) -> Path:
    """Rename a checkpoint to a name that is never resumed from; returns its path now."""
    try:
        return files.set_aside(path, path.name.replace("step", instead_of_step, 1))
    except OSError as error:
        raise CheckpointError(
            f"{path} must not be gone on from, but can't be renamed: {error}; make its folder writable, or rename it "
            "yourself",
            exit_status=1,
        ) from error


def _has_gone_back(newest: Path, path: Path) -> bool:
    """Whether the run that wrote ``newest`` had been told to go on from ``path``, and has come further."""
    with opening.malformed(str(newest), CheckpointError, "resume from another checkpoint"):
        told = load_plain(newest).get("config", {}).get("checkpoint", {}).get("resume")
        told = None if told is None else str(told)
    return told is not None and Path(told).expanduser().resolve() == path.resolve() != newest.resolve()


def is_own(checkpoint: Path, run_folder: Path) -> bool:
    """Whether ``checkpoint`` was written by the run of ``run_folder``."""
    return checkpoint.parent.resolve() == (run_folder / "checkpoints").resolve()


def set_later_aside(path: Path) -> None:
    """Keep checkpoints of the same folder later than ``path``, from which a run goes on, under a name that is never
    resumed from.

    Raises:
        CheckpointError: if one can't be renamed.
    """
    chosen = int(path.name.removeprefix("step_"))
    for step in checkpoint_steps(path.parent):
        if step > chosen:
            later = checkpoint_path(path.parent, step)
            aside = _set_aside(later, "superseded")
            log.warning("%s is set aside as %s, because the run goes back to %s", later.name, aside.name, path.name)


def is_finished(run_folder: Path, checkpoint: Path | None, total_steps: int) -> bool:
    """Whether the run reached ``total_steps`` and wrote down its end; its checkpoints may be gone since."""
    step = finished_step(run_folder)
    if step is not None and checkpoint is not None:
        with opening.malformed(str(checkpoint), CheckpointError, "resume from another checkpoint"):
            step = int(load_plain(checkpoint)["step"])
    return step is not None and step >= total_steps


def finished_step(run_folder: Path) -> int | None:
    """The last step of a run that wrote down that it was finished; None of another one."""
    try:
        with opening.regular(run_folder / "metrics.jsonl") as metrics:
            metrics.seek(max(0, metrics.seek(0, os.SEEK_END) - _LONGEST_END_BYTES))
            lines = metrics.read().splitlines()
        last = opening.parse_json(lines[-1]) if lines else {}
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise CheckpointError(
            f"{run_folder / 'metrics.jsonl'} can't be read ({error.strerror}); move it away"
        ) from error
    if not isinstance(last, dict) or last.get("event") != "end" or last.get("reason") != "finished":
        return None
    return last["step"] if type(last.get("step")) is int else None


def refuse_to_overwrite(run_folder: Path, checkpoint: Path | None, total_steps: int) -> None:
    """Look whether a run that begins in ``run_folder`` would overwrite the record of a finished one.

    Args:
        checkpoint: of another run, from which it begins; None: it begins at step 0.

    Raises:
        CheckpointError: if it would.
    """
    step = finished_step(run_folder)
    if step is not None and not (checkpoint is None and step >= total_steps):
        raise CheckpointError(
            f"{run_folder} holds a run that was finished at step {step}, and its checkpoints are gone; restore one to "
            "go on from it, or give another folder with hydra.run.dir=..."
        )
