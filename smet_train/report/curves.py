"""Charts of what changes from step to step: losses, speed, learning rate, gradient norm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from smet_train.report.charts import Axis, Chart, LeftOut, Marks, Series
from smet_train.report.runs import Numbers, RunRecord
from smet_train.report.thin import share, smoothed, thinned

Runs = Mapping[str, RunRecord]  # by label; the order is that of the colours
STEPS = Axis("optimizer step")
_LOSS = Axis("loss", "nats a token")
_SMOOTHED_FROM_STEPS = 100
_MOST_MARKS = 400
_WORDS = {"": "", "k": "thousand ", "M": "million ", "G": "billion ", "T": "trillion ", "P": "quadrillion "}
_FLOPS_TITLE = "Loss against compute"


def loss_charts(runs: Runs) -> list[Chart | LeftOut]:
    """Training and validation loss against steps, tokens and operations."""
    if not any("train" in run.events or "eval" in run.events for run in runs.values()):
        return [LeftOut("Loss", "no run has taken a step yet")]
    marks = update_marks(runs)
    steps = _loss("loss_steps", "Loss against steps", STEPS, runs, lambda _, steps: steps, marks)
    tokens = _loss("loss_tokens", "Loss against tokens", Axis("trained on", "tokens"), runs, tokens_at)
    return [steps, tokens, _loss_against_operations(runs)]


def update_marks(runs: Runs) -> Marks | None:
    """The topology updates of all runs; none where they would cover the chart."""
    steps = np.unique(np.concatenate([run.updates for run in runs.values()]))
    return Marks("topology update", tuple(steps.tolist())) if 0 < len(steps) <= _MOST_MARKS else None


def tokens_at(run: RunRecord, steps: Numbers) -> Numbers:
    """Tokens trained on after each of ``steps``, from the steps that were recorded."""
    known, tokens = run.column("train", "step"), run.column("train", "tokens")
    if not len(known):
        return np.zeros_like(steps)
    # Every step takes as many tokens, so that the line through the first and the last is exact at step 0 too.
    return steps * (tokens[-1] / known[-1])


def _loss_against_operations(runs: Runs) -> Chart | LeftOut:
    known = {label: run for label, run in runs.items() if run.step_flops}
    if not known:
        return LeftOut(_FLOPS_TITLE, "these runs did not record the operations of a step (step_flops)")
    missing = [label for label in runs if label not in known]
    note = "Matrix products as the backends compute them, from the plan of the first step."
    if missing:
        note += f" Without {', '.join(missing)}, which did not record them."
    axis = Axis("computed", "FLOP")
    return _loss("loss_flops", _FLOPS_TITLE, axis, known, _operations, note=note, colors=list(runs))


def _operations(run: RunRecord, steps: Numbers) -> Numbers:
    return steps * float(run.step_flops or 0)


def _loss(
    key: str,
    title: str,
    axis: Axis,
    runs: Runs,
    position: Callable[[RunRecord, Numbers], Numbers],
    marks: Marks | None = None,
    note: str = "",
    colors: Sequence[str] = (),
) -> Chart:
    """One loss chart; a run keeps its place in ``colors``, by default that in ``runs``."""
    alone, order = len(runs) == 1, list(colors or runs)
    drawn: list[Series] = []
    limit = share(2 * len(runs))
    prefix, scale = _prefix(max(float(np.nanmax(position(run, _all_steps(run)), initial=0)) for run in runs.values()))
    if axis.unit:
        axis = replace(axis, unit=f"{prefix}{axis.unit}" if axis.unit.isupper() else f"{_WORDS[prefix]}{axis.unit}")
    else:
        scale = 1.0
    for label, run in runs.items():
        color = order.index(label)
        steps, loss = run.column("train", "step"), run.column("train", "loss")
        window = len(steps) // 50 if len(steps) >= _SMOOTHED_FROM_STEPS else 1
        name = "training" if alone else label
        x = position(run, steps) / scale
        drawn.append(Series(name, *thinned(x, loss, limit), color, strong=window == 1))
        if window > 1:
            mean = f"training, mean of {window} steps" if alone else label
            drawn.append(Series(mean, *thinned(x, smoothed(loss, window), limit), color))
        at = position(run, run.column("eval", "step")) / scale
        validation = "validation" if alone else label
        points = thinned(at, run.column("eval", "loss"), limit)
        drawn.append(Series(validation, *points, color + alone, style="both", dashed=not alone))
    if not alone:
        note = f"Pale: every step; thick: running mean; dashed with points: validation. {note}".strip()
    return Chart(key, title, axis, _LOSS, tuple(line for line in drawn if line.x), marks=marks, note=note)


def _all_steps(run: RunRecord) -> Numbers:
    return np.concatenate([run.column("train", "step"), run.column("eval", "step")])


def _prefix(largest: float) -> tuple[str, float]:
    """That of the unit in which ``largest`` is read most easily, and what to divide by."""
    known = [("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)]
    return next(((prefix, scale) for prefix, scale in known if largest >= scale), ("", 1.0))


def course(
    runs: Runs, key: str, title: str, y: Axis, event: str, field: str, note: str = "", marks: bool = False
) -> Chart | LeftOut:
    """One field of ``event`` against steps, a line a run."""
    drawn = []
    points = event != "train"
    for color, (label, run) in enumerate(runs.items()):
        steps, values = run.column(event, "step"), run.column(event, field)
        if np.isfinite(values).any():
            x, v = thinned(steps, values, share(len(runs)))
            drawn.append(Series(label, x, v, color, style="both" if points else "line"))
    if not drawn:
        return LeftOut(title, f"there is no {field} in any {event} event")
    return Chart(key, title, STEPS, y, tuple(drawn), marks=update_marks(runs) if marks else None, note=note)


def optimization_charts(runs: Runs) -> list[Chart | LeftOut]:
    """Speed, learning rate and gradient norm."""
    speed = course(
        runs, "tokens_per_s", "Speed", Axis("training speed", "tokens/s"), "train", "tokens_per_s",
        note="Over the last 20 steps; evaluation, saving and topology updates left out.",
    )  # fmt: skip
    rate = course(
        runs, "lr", "Learning rate", Axis("learning rate"), "train", "lr", note="Before the density rule scales it."
    )
    norm = course(
        runs, "grad_norm", "Gradient norm", Axis("global norm", log=True), "train", "grad_norm",
        note="Before clipping, sparse values included.", marks=True,
    )  # fmt: skip
    return [rate, norm, speed]
