"""A sweep's runs by density: the mean over seeds, and how far they lie apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from smet_train.report.charts import Axis, Chart, LeftOut, Section, Series, Table
from smet_train.report.labels import DENSITY, SEED, facts, labels
from smet_train.report.runs import RunRecord, Sweep
from smet_train.report.searches import search_charts
from smet_train.report.tables import LAST_STEPS, final_loss

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a run, None if it has not come to it."""

    key: str
    label: str
    unit: str
    of: Callable[[RunRecord], float | None]


def _validation(run: RunRecord) -> float | None:
    value = run.last("eval").get("loss")
    return None if value is None else float(value)


def _mean_spike(run: RunRecord) -> float | None:
    spikes = run.column("spike", "spike", "train")
    return float(spikes.mean()) if len(spikes) else None


def _speed(run: RunRecord) -> float | None:
    speeds = run.column("train", "tokens_per_s")
    return float(np.median(speeds)) if len(speeds) else None


def _held(run: RunRecord) -> float | None:
    kinds = run.last("memory").get("kinds", [])
    return sum(row["bytes"] for row in kinds) / _MIB if kinds else None


METRICS = (
    Metric("validation_loss", "validation loss", "nats a token", _validation),
    Metric("training_loss", f"training loss, last {LAST_STEPS} steps", "nats a token", final_loss),
    Metric("mean_spike", "mean spike of the training loss", "nats a token", _mean_spike),
    Metric("speed", "median speed", "tokens/s", _speed),
    Metric("memory", "state in memory", "MiB", _held),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """The runs of one group at one density, which differ in their seed alone."""

    group: str
    density: float
    runs: tuple[RunRecord, ...]

    def values(self, metric: Metric) -> list[float]:
        """``metric`` of each run that has it as a finite number, in the unit of the metric."""
        found = [metric.of(run) for run in self.runs]
        return [value for value in found if value is not None and np.isfinite(value)]


def cells(runs: Sequence[RunRecord]) -> list[Cell]:
    """All of ``runs`` by what they are but for their seed, in order of group and density."""
    groups: dict[tuple[str, float], list[RunRecord]] = {}
    for run, label in zip(runs, labels(runs, without=(DENSITY, SEED)), strict=True):
        density = facts(run).get(DENSITY)
        groups.setdefault((label, np.nan if density is None else float(density)), []).append(run)
    return [Cell(group, density, tuple(found)) for (group, density), found in sorted(groups.items())]


def sweep_section(sweep: Sweep, number: int) -> Section:
    """Validation loss by what was searched; density x metric, with error bars over seeds; groups side by side where
    there is one density."""
    found = cells(sweep.runs)
    charts = tuple(_chart(found, metric, f"sweep{number}_{metric.key}") for metric in METRICS)
    searched = search_charts(sweep.runs, f"sweep{number}")
    return Section(f"Sweep: {sweep.folder.name}", (*searched, *charts), (_table(found),))


def _chart(found: list[Cell], metric: Metric, key: str) -> Chart | LeftOut:
    title = metric.label[0].upper() + metric.label[1:]
    known = [cell for cell in found if cell.values(metric)]
    if not known:
        return LeftOut(f"{title} of the sweep", "no run has come to it yet")
    groups = list(dict.fromkeys(cell.group for cell in found))
    note = ""
    if any(len(cell.values(metric)) > 1 for cell in known):
        note = "Mean over seeds; the bars are one standard deviation."
    y_axis = Axis(metric.label, metric.unit)
    densities = tuple(sorted({cell.density for cell in known}))
    if len(densities) == 1:
        names = tuple(group for group in groups if any(cell.group == group for cell in known))
        drawn = tuple(
            _series("", [cell], [names.index(cell.group)], metric, groups.index(cell.group)) for cell in known
        )
        return Chart(key, title, Axis("", categories=names), y_axis, drawn, note=note)
    lines = {group: [cell for cell in known if cell.group == group] for group in groups}
    drawn = tuple(
        _series(group, line, [cell.density for cell in line], metric, groups.index(group))
        for group, line in lines.items()
        if line
    )
    return Chart(key, title, Axis("density", log=True, ticks=densities), y_axis, drawn, note=note)


def _series(label: str, line: list[Cell], x: Sequence[float], metric: Metric, color: int) -> Series:
    values = [cell.values(metric) for cell in line]
    means, errors = tuple(map(fmean, values)), tuple(map(_deviation, values))
    names = tuple(f"{cell.group}, n = {len(found)}" for cell, found in zip(line, values, strict=True))
    return Series(label, tuple(map(float, x)), means, color, style="both", errors=errors, names=names)


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _table(found: list[Cell]) -> Table:
    columns = ("runs", "density", "seeds", *(f"{metric.label}, {metric.unit}" for metric in METRICS))
    rows = []
    for cell in found:
        texts = [_text(cell.values(metric)) for metric in METRICS]
        rows.append((cell.group, f"{cell.density:g}", str(len(cell.runs)), *texts))
    return Table("Sweep by density", columns, tuple(rows), note="Mean ± one standard deviation over seeds.")


def _text(values: list[float]) -> str:
    if not values:
        return "-"
    mean, spread = fmean(values), _deviation(values)
    decimals = 0 if mean >= 1000 else 2 if mean >= 10 else 4
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}" if len(values) > 1 else f"{mean:.{decimals}f}"
