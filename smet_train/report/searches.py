"""A sweep's validation loss by each number that it swept or searched beside the density: where the best one is."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from smet_train.report.charts import MOST_IN_LEGEND, Axis, Chart, Series
from smet_train.report.labels import DENSITY, SEED, facts, labels
from smet_train.report.runs import RunRecord

_FEWEST_VALUES = 3  # two are a comparison, which the tables show
_UNFIT = re.compile(r"[^A-Za-z0-9]+")  # in the name of a file, and of a place in a page
_LONGEST_KEY = 100
_DECADE = 10.0  # numbers further apart than this are drawn by their logarithms


def search_charts(runs: Sequence[RunRecord], key_prefix: str) -> tuple[Chart, ...]:
    """One chart for each setting that has three different numbers or more in ``runs``, but for density and seed.

    Runs without a validation loss that is a number are not drawn.
    """
    done = [run for run in runs if np.isfinite(_loss(run))]
    values: dict[str, set[float]] = {}
    for run in done:
        for key, value in facts(run).items():
            if _is_number(value) and key not in (DENSITY, SEED):
                values.setdefault(key, set()).add(float(value))
    swept = [key for key, found in values.items() if len(found) >= _FEWEST_VALUES]
    names = {key: f"{key_prefix}_{_UNFIT.sub('_', key)}"[:_LONGEST_KEY] for key in swept}
    for number, key in enumerate(swept):  # keys that are none of ours may become alike
        if list(names.values()).count(names[key]) > 1:
            names[key] = f"{names[key]}_{number}"
    return tuple(_chart(done, key, values[key], names[key]) for key in swept)


def _chart(runs: Sequence[RunRecord], key: str, values: set[float], name: str) -> Chart:
    with_key = [run for run in runs if _is_number(facts(run).get(key))]
    told = labels(with_key, without=(key, SEED))
    if len(set(told)) > MOST_IN_LEGEND:
        told = [""] * len(with_key)
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for run, label in zip(with_key, told, strict=True):
        lines.setdefault(label, []).append((float(facts(run)[key]), _loss(run), run.folder.name))
    series = tuple(_series(label, sorted(found), number) for number, (label, found) in enumerate(sorted(lines.items())))
    log = min(values) > 0 and max(values) / min(values) > _DECADE
    axis = Axis(key, log=log)
    return Chart(name, f"Validation loss by {key}", axis, Axis("validation loss", "nats a token"), series)


def _series(label: str, points: list[tuple[float, float, str]], color: int) -> Series:
    x, y, names = (tuple(column) for column in zip(*points, strict=True))
    return Series(label, x, y, color, style="points", names=names)


def _loss(run: RunRecord) -> float:
    value = run.last("eval").get("loss")
    return float("nan") if value is None else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
