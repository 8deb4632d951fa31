"""The runs that a report is about: found from paths, and read without disturbing one that is still training."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from smet_train import opening
from smet_train.config.identity import lasting_settings
from smet_train.config.messages import nearest
from smet_train.errors import SmetError
from smet_train.report.events import Events
from smet_train.showing import all_shown, shown
from smet_train.tracking.jsonl import each_event

Numbers = NDArray[np.float64]
METRICS_NAME = "metrics.jsonl"
EXAMPLE = "write for instance smet-report outputs/demo-1a2b3c4d, or smet-report --newest"


class ReportError(SmetError):
    """What is to be reported is not there or can't be read, or the report can't be written."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run folder says: its events by kind, and the settings that make the run what it is (dotted keys)."""

    folder: Path
    events: dict[str, Events]
    settings: dict[str, Any] = field(default_factory=dict)

    def column(self, kind: str, key: str, source: str | None = None) -> Numbers:
        """One number an event of ``kind``, and of ``source`` if it is given; NaN where there is none."""
        events = self.events.get(kind, Events())
        numbers = events.numbers(key)
        return numbers if source is None else numbers[[event.get("source") == source for event in events]]

    def fact(self, key: str) -> Any:
        """Of the first event, which says what was trained; None if an older version did not write it."""
        header = self.events.get("run")
        return header[0].get(key) if header else None

    def last(self, kind: str) -> dict[str, Any]:
        """The latest event of ``kind``; empty if there is none."""
        events = self.events.get(kind)
        return events[-1] if events else {}

    @property
    def step_flops(self) -> int | None:
        """Operations of a step; None if they were not predicted. Older versions wrote them into the first event."""
        return self.last("plan").get("step_flops") or self.fact("step_flops")

    @property
    def updates(self) -> Numbers:
        """Steps that a topology update followed."""
        return self.column("topology", "step")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's folder and the runs in it that have begun."""

    folder: Path
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What paths lead to: all runs once, in order, sweeps among them, and sentences about what could not be used."""

    runs: tuple[RunRecord, ...]
    sweeps: tuple[Sweep, ...]
    notes: tuple[str, ...]


def find(paths: Iterable[Path]) -> Found:
    """The runs in ``paths``, which are run folders or folders of sweeps.

    Raises:
        ReportError: if a path holds no run, or the metrics of one are damaged.
    """
    runs: dict[Path, RunRecord] = {}
    sweeps, notes = [], []
    for path in paths:
        folder = path.resolve()
        if (folder / METRICS_NAME).is_file():
            runs.setdefault(folder, read_run(folder))
            continue
        jobs = sorted({found.parent for name in (METRICS_NAME, "console.log") for found in folder.glob(f"*/{name}")})
        begun = [job for job in jobs if (job / METRICS_NAME).is_file()]
        if not begun:
            raise ReportError(_no_run(path))
        notes += [f"{job.name} wrote no metrics; its console.log may say why." for job in jobs if job not in begun]
        for job in begun:
            runs.setdefault(job, read_run(job))
        sweeps.append(Sweep(folder, tuple(runs[job] for job in begun)))
    return Found(tuple(runs.values()), tuple(sweeps), tuple(notes))


def read_run(folder: Path) -> RunRecord:
    """Everything in a run folder that a report tells of. The run may be training: its last line may be half written.

    Raises:
        ReportError: if a file can't be read or is damaged.
    """
    path = folder / METRICS_NAME
    events: dict[str, Events] = {}
    try:
        for event in each_event(path):
            events.setdefault(shown(str(event.get("event"))), Events()).append(all_shown(event))
    except ValueError as error:
        raise ReportError(
            f"{error}: the line is damaged; take it out of a copy and report that", exit_status=1
        ) from error
    except OSError as error:
        raise ReportError(f"{path} can't be read ({error.strerror})", exit_status=1) from error
    return RunRecord(folder, events, all_shown(_settings(folder / "config.yaml")))


def _settings(path: Path) -> dict[str, Any]:
    """The lasting settings of a run; none if its config.yaml is missing or damaged: they only tell runs apart."""
    try:
        settings = opening.read_settings(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return lasting_settings(settings) if isinstance(settings, dict) else {}


def newest_run(root: Path) -> Path:
    """The run in ``root`` that smet-train was last started in, or that is still writing.

    Raises:
        ReportError: if there is none.
    """
    runs = [path.parent for path in root.glob(f"*/{METRICS_NAME}")]
    if not runs:
        raise ReportError(f"{root}/ holds no run; train one with smet-train +experiment=demo, or name its folder")
    # Every start writes to the lock, also one that finds the run finished; a report writes to neither.
    return max(runs, key=lambda run: max(_modified(run / ".lock"), _modified(run / METRICS_NAME)))


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _no_run(path: Path) -> str:
    if not path.exists():
        near = nearest(path.name, [found.parent.name for found in path.parent.glob(f"*/{METRICS_NAME}")])
        return f"{path} does not exist; " + (f"did you mean {path.parent / near[0]}?" if near else EXAMPLE)
    if not path.is_dir():
        return f"{path} is a file; give its run folder: smet-report {path.parent}"
    if (path / "config.yaml").is_file():
        return f"{path} has no {METRICS_NAME} yet; its run has not begun to train"
    return f"{path} is neither a run folder nor a sweep's; {EXAMPLE}"
