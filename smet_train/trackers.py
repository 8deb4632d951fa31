"""The trackers that a configuration asks for, and the report that they get of a finished run."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from smet_train.config.identity import run_identity
from smet_train.config.schema import Config
from smet_train.report.report import build_report, write_report
from smet_train.report.runs import find
from smet_train.tracking import wandb_sink
from smet_train.tracking.jsonl import events_until
from smet_train.tracking.shelter import Sheltered
from smet_train.tracking.tensorboard_sink import TensorboardSink
from smet_train.tracking.wandb_sink import WandbSettings, WandbSink
from smet_train.train.run import Run


def add_trackers(config: Config, run: Run) -> list[Sheltered]:
    """Add to ``run`` those of ``tracking.`` that are asked for; returns them.

    Each is given all events of the run from its first one, so that it has them once, however often the run went on. The
    metrics file must be at the run's position.
    """
    trackers = []
    if config.tracking.wandb.name != "disabled":
        settings = WandbSettings(
            mode=config.tracking.wandb.name,
            project=config.tracking.wandb_project,
            identity=run_identity(config),
            fresh=run.fresh,
            entity=config.tracking.wandb_entity,
            group=config.tracking.wandb_group or sweep_name(run.folder),
            tags=tuple(config.tracking.wandb_tags),
        )
        start = partial(wandb_sink.open_wandb, settings, run.folder, run.config)
        trackers.append(Sheltered("tracking.wandb", start, history(run), abandon=wandb_sink.abandon))
    if config.tracking.tensorboard:
        start_tensorboard = partial(TensorboardSink, run.folder / "tensorboard")
        trackers.append(Sheltered("tracking.tensorboard", start_tensorboard, history(run)))
    for tracker in trackers:
        run.tracker.add(tracker)
    return trackers


def history(run: Run) -> Iterator[dict[str, Any]]:
    """The events so far."""
    return events_until(run.folder / "metrics.jsonl", run.metrics.position())


def sweep_name(run_folder: Path) -> str | None:
    """The name of the sweep's folder that a run folder lies in, None if it lies in none."""
    sweeps = (run_folder.parent / "multirun.yaml").is_file() or (run_folder / "console.log").is_file()
    return run_folder.parent.name if sweeps else None


def publish_report(trackers: Sequence[Sheltered], run_folder: Path) -> None:
    """Give wandb the report of a finished run, its settings and its metrics as an artifact."""
    for tracker in trackers:
        tracker.do(partial(_attach_report, run_folder))


def _attach_report(run_folder: Path, sink: Any) -> None:
    """In the tracker's thread: drawing the page takes seconds."""
    if isinstance(sink, WandbSink):
        page, _ = write_report(build_report(find([run_folder])), run_folder, images=False)
        sink.attach("report", [page, run_folder / "config.yaml", run_folder / "metrics.jsonl"])


def note_lines(trackers: Sequence[Sheltered]) -> list[str]:
    """Where to look, of the trackers that were opened."""
    return [f"{tracker.name.rpartition('.')[2]:<11} {tracker.note}" for tracker in trackers if tracker.note]
