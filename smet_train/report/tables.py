"""Tables that are made to be copied: one row a run, one row a topology update."""

from statistics import median
from typing import Any

import numpy as np

from smet_train.report.charts import Table
from smet_train.report.curves import Runs
from smet_train.report.runs import RunRecord

LAST_STEPS = 10
_MOST_COLUMNS = 4
_MIB = 2**20


def final_loss(run: RunRecord) -> float | None:
    """Mean training loss of the last 10 steps."""
    losses = run.column("train", "loss")[-LAST_STEPS:]
    return float(np.mean(losses)) if len(losses) else None


def state(run: RunRecord) -> str:
    """How the run ended, or that it has not."""
    ended = run.last("end")
    if not ended:
        return "training, or killed"
    return str(ended.get("reason"))


def summary_table(runs: Runs) -> Table:
    """One row a run; few runs side by side, a fact in each row."""
    columns = (
        "run", "state", "steps", "tokens", "density", "active parameters", f"training loss, last {LAST_STEPS}",
        "validation loss", "perplexity", "updates", "mean spike", "largest spike", "median tokens/s",
        "process peak, MiB", "state / dense", "folder",
    )  # fmt: skip
    rows = [columns, *(_summary(label, run) for label, run in runs.items())]
    if len(runs) <= _MOST_COLUMNS:
        rows = list(zip(*rows, strict=True))
    return Table("Runs", rows[0], tuple(rows[1:]))


def _summary(label: str, run: RunRecord) -> tuple[str, ...]:
    train, evaluated, memory = run.last("train"), run.last("eval"), run.last("memory")
    spikes = run.column("spike", "spike", "train")
    speeds = run.column("train", "tokens_per_s")
    kinds = memory.get("kinds", [])
    dense = sum(row["dense_bytes"] for row in kinds)
    return (
        label,
        state(run),
        _number(train.get("step"), ".0f"),
        _number(train.get("tokens"), ".0f"),
        _number(run.fact("density"), "g"),
        _number(run.fact("parameters_active"), ".0f"),
        _number(final_loss(run), ".4f"),
        _number(evaluated.get("loss"), ".4f"),
        _number(evaluated.get("perplexity"), ".2f"),
        str(len(run.updates)),
        _number(spikes.mean() if len(spikes) else None, "+.4f"),
        _number(spikes.max() if len(spikes) else None, "+.4f"),
        _number(median(speeds) if len(speeds) else None, ".0f"),
        _number(memory["peak_rss_bytes"] / _MIB if "peak_rss_bytes" in memory else None, ".0f"),
        _number(sum(row["bytes"] for row in kinds) / dense if dense else None, ".3f"),
        str(run.folder),
    )


def spike_table(runs: Runs) -> Table | None:
    """One row a measured update; None if there is none."""
    columns = ("run", "step", "loss of", "baseline", "peak", "spike", "recovery, steps", "window, steps")
    rows = [
        (
            label,
            _number(event.get("step"), ".0f"),
            str(event.get("source", "-")),
            *(_number(event.get(key), ".4f") for key in ("baseline", "peak", "spike")),
            *(_number(event.get(key), ".0f") for key in ("recovery_steps", "horizon_steps")),
        )
        for label, run in runs.items()
        for event in run.events.get("spike", ())
    ]
    return Table("Spikes", columns, tuple(rows), folded=True) if rows else None


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(float(value), form)
