"""What a run does when its numbers are bad: write it down, and start again from its newest checkpoint, or end."""

import logging
import time
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from smet_train.errors import CheckpointError, SmetError, TrainingError
from smet_train.tracking.jsonl import JsonlSink
from smet_train.train.checkpoint import Keep, save_checkpoint
from smet_train.train.guard import RollBack
from smet_train.train.processes import ALONE, Processes
from smet_train.train.run import Run
from smet_train.train.state import capture

log = logging.getLogger(__name__)


def note_incident(run: Run, what: str, action: str) -> None:
    """A line in ``incidents.jsonl``, on disk at once, and a warning.

    Raises:
        SmetError: if the line can't be written, unless a save that fails is a warning.
    """
    step = run.state.step + 1
    if not run.processes.leads:
        return
    log.warning("step %d: %s; %s", step, what, action)
    try:
        with closing(JsonlSink(run.folder / "incidents.jsonl")) as sink:
            sink.emit({"event": "incident", "step": step, "what": what, "action": action, "time_s": time.time()})
            sink.position()
    except SmetError as error:
        if not run.saver.warn:
            raise
        log.warning("%s", error)  # train.log has the incident


def go_back(run: Run, what: str) -> NoReturn:
    """Start again from the newest checkpoint, or end: the state is kept beside the checkpoints then, to look at.

    Raises:
        RollBack: to be answered by building the run anew.
        TrainingError: if there is no checkpoint, or the run has gone back often enough.
    """
    step = run.state.step + 1
    newest = run.saver.newest()
    if newest is not None and run.guard.rollbacks < run.guard.max_rollbacks:
        note_incident(run, what, f"going back to {newest.name}, with the data from here on")
        run.guard.go_back()
        raise RollBack(run.batches.state_dict(), run.guard.state_dict())
    kept = keep_for_inspection(run)
    note_incident(run, what, "ending")
    tried = f"after going back {run.guard.rollbacks} times" if newest else "and there is no checkpoint to go back to"
    raise run.processes.alike(
        TrainingError(
            f"step {step}: {what}, {tried}; {_advice(run.folder if newest else None)}. The bad state {kept}",
            exit_status=1,
        )
    )


def _advice(folder: Path | None) -> str:
    """What to do about bad numbers; ``folder``: of the run, if it has a checkpoint to go on from."""
    if folder is None:
        return "lower optimizer.lr or look at the data, and start again"
    return (
        f"lower optimizer.lr in a new run that begins here, by checkpoint.resume={folder}, or look at the data and "
        "start the same command again to go on from the newest checkpoint"
    )


def keep_for_inspection(run: Run) -> str:
    """Save the state where no run starts from; returns what became of it."""
    snapshot, processes = capture(run), run.processes

    def write(writers: Processes) -> Path:
        return save_checkpoint(run.folder / "inspect", run.state.step, snapshot, Keep(1), writers)

    try:
        path = write(processes) if snapshot.is_split else processes.told(lambda: write(ALONE))
    except CheckpointError as error:
        return f"could not be kept: {error}"
    return f"is kept in {path}"
