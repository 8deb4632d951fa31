"""Which checkpoint a run starts from, decided from ``checkpoint.resume`` and what its folder holds."""

import json
import logging
from pathlib import Path

from smet_train.errors import CheckpointError
from smet_train.train import files
from smet_train.train.checkpoint import checkpoint_steps, latest_checkpoint, load_plain

log = logging.getLogger(__name__)


def choose_checkpoint(resume: str, run_folder: Path) -> Path | None:
    """The checkpoint to start from, or None to start at step 0.

    ``auto`` takes the newest of the run folder. ``never`` takes none. A path names a checkpoint, or a run folder whose
    newest is taken; once the run has checkpoints of its own that are not older in origin, it goes on from those, so
    that the same command typed again after a crash loses nothing. A path inside the run folder goes back to it, and
    the later checkpoints are set aside.

    Raises:
        CheckpointError: if the path is no checkpoint, or if ``never`` meets a folder that holds a run.
    """
    own = latest_checkpoint(run_folder / "checkpoints")
    if resume == "never":
        if own is not None:
            raise CheckpointError(
                f"checkpoint.resume=never: {run_folder} holds a run already; leave hydra.run.dir out to get a fresh "
                "folder, or give another one"
            )
        return None
    if resume == "auto":
        return own
    path = _named_checkpoint(Path(resume).expanduser())
    if path.parent.resolve() == (run_folder / "checkpoints").resolve():
        _set_later_aside(path)
        return path
    if own is not None:
        log.warning("going on from %s, which this run wrote after it had started from %s", own, path)
        return own
    return path


def _named_checkpoint(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(
            f"checkpoint.resume={path} does not exist; write auto, never, or the path of a checkpoint such as "
            "<run folder>/checkpoints/step_00000500"
        )
    for folder in (path, path / "checkpoints"):
        newest = latest_checkpoint(folder)
        if newest is not None:
            return newest
    load_plain(path)
    return path


def _set_later_aside(path: Path) -> None:
    """Keep later checkpoints of the same folder, under a name that is never resumed from."""
    chosen = int(path.name.removeprefix("step_"))
    for step in checkpoint_steps(path.parent):
        if step > chosen:
            later = path.parent / f"step_{step:08d}"
            aside = path.parent / f"superseded_{step:08d}"
            files.remove_folder(aside)
            later.rename(aside)
            log.warning("%s is set aside as %s, because the run goes back to %s", later.name, aside.name, path.name)


def is_finished(run_folder: Path, checkpoint: Path | None, total_steps: int) -> bool:
    """Whether the run reached ``total_steps`` and wrote down its end."""
    if checkpoint is None or int(load_plain(checkpoint)["step"]) < total_steps:
        return False
    metrics = run_folder / "metrics.jsonl"
    if not metrics.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return False
    return last.get("event") == "end" and last.get("reason") == "finished"
