"""Charts of what a topology update does to the loss right after it."""

import itertools

import numpy as np

from smet_train.report.charts import Axis, Band, Chart, LeftOut, Series
from smet_train.report.curves import STEPS, Runs
from smet_train.report.runs import Numbers, RunRecord

BEFORE_STEPS, AFTER_STEPS = 10, 30
OFFSETS = np.arange(-BEFORE_STEPS, AFTER_STEPS + 1)
_MOST_LINES = 60
_ABOVE = Axis("loss above baseline", "nats a token")
_TITLE = "Training loss around each topology update"


def windows(run: RunRecord) -> Numbers:
    """Training loss less its baseline from 10 steps before each update to 30 after it, one row an update.

    Column j is the step ``OFFSETS[j]`` after the update's; 0 is the last loss before it. The baseline is that of the
    update's spike event, or the mean of the 10 losses up to the update. NaN where no step was recorded, and from where
    the next update's effect begins.
    """
    losses = dict(zip(run.column("train", "step").tolist(), run.column("train", "loss").tolist(), strict=True))
    measured = [event for event in run.events.get("spike", ()) if event.get("source") == "train"]
    baselines = {float(event["step"]): float(event["baseline"]) for event in measured}
    updates = run.updates.tolist()
    rows = []
    for at, following in itertools.pairwise([*updates, np.inf]):
        row = np.array([losses.get(at + k, np.nan) if at + k <= following else np.nan for k in OFFSETS])
        row[~np.isfinite(row)] = np.nan
        before = row[1 : BEFORE_STEPS + 1]
        if at in baselines:
            rows.append(row - baselines[at])
        elif np.isfinite(before).any():
            rows.append(row - np.nanmean(before))
    return np.array(rows).reshape(len(rows), len(OFFSETS))


def spike_charts(runs: Runs) -> list[Chart | LeftOut]:
    """The loss around updates, and the spike of each update by the step it followed."""
    if not any(len(run.updates) for run in runs.values()):
        return [LeftOut("Loss spikes", "the topology has not moved in any run")]
    by_step = [_by_step(runs, "train", "training loss"), _by_step(runs, "probe", "fixed probe batch")]
    return [_overlay(runs), *by_step]


def _overlay(runs: Runs) -> Chart | LeftOut:
    series: list[Series] = []
    bands: list[Band] = []
    note = "Less the mean of the 10 losses before; the update follows step 0."
    for color, (label, run) in enumerate(runs.items()):
        rows = windows(run)
        seen = np.isfinite(rows).any(axis=0) if len(rows) else np.zeros(len(OFFSETS), bool)
        if not seen.any():
            continue
        x = tuple(OFFSETS[seen].tolist())
        mean = np.nanmean(rows[:, seen], axis=0)
        if len(runs) == 1:
            drawn = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_LINES)).astype(int))
            note += f" {len(drawn)} of {len(rows)} updates drawn." if len(drawn) < len(rows) else ""
            for row, step in zip(rows[drawn], run.updates[drawn], strict=True):
                names = (f"update after step {step:.0f}",) * len(x)
                series.append(Series("each update", x, tuple(row[seen].tolist()), 1, strong=False, names=names))
        else:
            spread = np.nanstd(rows[:, seen], axis=0)
            bands.append(Band(label, x, tuple((mean - spread).tolist()), tuple((mean + spread).tolist()), color))
        name = f"mean of {len(rows)} updates" if len(runs) == 1 else label
        series.append(Series(name, x, tuple(mean.tolist()), color))
    if not series:
        return LeftOut(_TITLE, "no step around an update was recorded")
    if len(runs) > 1:
        note += " Lines: mean over the updates; bands: one standard deviation between them."
    axis = Axis("steps after the update")
    return Chart("spike_overlay", _TITLE, axis, _ABOVE, tuple(series), bands=tuple(bands), note=note)


def _by_step(runs: Runs, source: str, what: str) -> Chart | LeftOut:
    title = f"Spike of each update, {what}"
    drawn = []
    for color, (label, run) in enumerate(runs.items()):
        x, y = run.column("spike", "step", source), run.column("spike", "spike", source)
        if len(x):
            y[~np.isfinite(y)] = np.nan
            drawn.append(Series(label, tuple(x.tolist()), tuple(y.tolist()), color, style="both"))
    if not drawn:
        remedy = "; tracking.probe_windows was 0" if source == "probe" else " has ended yet"
        return LeftOut(title, f"no measured window of the {what}{remedy}")
    beta2 = sorted({run.fact("beta2") for run in runs.values() if run.fact("beta2")})
    note = f"Peak less baseline; beta2 {', '.join(map(str, beta2))}." if beta2 else "Peak less baseline."
    return Chart(f"spikes_{source}", title, STEPS, Axis("spike", "nats a token"), tuple(drawn), note=note)
