"""Charts of the topology: where it has been, how dense each layer is, where one layer is active."""

from dataclasses import replace

import numpy as np

from smet_train.report.charts import Axis, Chart, HeatMap, LeftOut, Series
from smet_train.report.curves import Runs, course
from smet_train.report.runs import Numbers, RunRecord

_MAP_TITLE = "Where a layer is active"
_MOST_MAPS = 6
_SHARE = Axis("active", "fraction of sites")


def exploration_charts(runs: Runs) -> list[Chart | LeftOut]:
    """Sites ever active, survival of the grown, mean age, density per layer."""
    ever = course(
        runs, "ever_active", "Sites ever active", Axis("ever active", "fraction of sites"), "topology", "ever_active"
    )
    survived = course(
        runs, "survived", "Survival of the grown", Axis("kept", "fraction of grown values"), "topology", "survived",
        note="Of the values grown by the update before, how many this one keeps.",
    )  # fmt: skip
    age = course(runs, "mean_age", "Mean age of the active values", Axis("age", "steps"), "topology", "mean_age_steps")
    return [ever, survived, age, _densities(runs)]


def _densities(runs: Runs) -> Chart | LeftOut:
    title = "Density of each layer"
    drawn = []
    for color, (label, run) in enumerate(runs.items()):
        known = run.fact("layer_densities")
        if known:
            x = tuple(float(number) for number in range(len(known)))
            y = tuple(float(density) for density in known.values())
            drawn.append(Series(label, x, y, color, style="points", names=tuple(known)))
    if not drawn:
        return LeftOut(title, "these runs are dense, or did not record it (layer_densities)")
    x_axis, y_axis = Axis("sparse layer, in model order"), replace(_SHARE, from_zero=True)
    return Chart("densities", title, x_axis, y_axis, tuple(drawn), note="Point at one for its layer.")


def map_charts(runs: Runs) -> list[Chart | LeftOut]:
    """By input bin over the updates; of a run alone its first and last grid too."""
    mapped = {label: run for label, run in runs.items() if run.events.get("topology_map")}
    if not mapped:
        return [LeftOut(_MAP_TITLE, "these runs are dense, or did not record it (tracking.map_layer)")]
    charts: list[Chart | LeftOut] = []
    for number, (label, run) in enumerate(list(mapped.items())[:_MOST_MAPS]):
        layer, grids = _grids(run)
        of = layer if len(runs) == 1 else f"{label}, {layer}"
        key = "" if len(runs) == 1 else f"_{number + 1}"
        charts.append(_over_updates(f"map_updates{key}", of, grids))
        if len(runs) == 1:
            low, high = _ends(np.concatenate([grids[0], grids[-1]]))
            first = _grid("map_first", f"{layer} at first", grids[0], low, high)
            last = _grid("map_last", f"{layer} at last, after {len(grids) - 1} updates", grids[-1], low, high)
            charts += [first, last] if len(grids) > 1 else [first]
    if len(mapped) > _MOST_MAPS:
        charts.append(LeftOut(_MAP_TITLE, f"of the other {len(mapped) - _MOST_MAPS} runs: report them one by one"))
    return charts


def _grids(run: RunRecord) -> tuple[str, list[Numbers]]:
    """The layer that was recorded last, and its grids (output bins, input bins) in order."""
    events = run.events["topology_map"]
    layer = str(events[-1]["layer"])
    return layer, [np.array(event["grid"], dtype=float) for event in events if event["layer"] == layer]


def _ends(values: Numbers) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (0.0, max(high, 1e-9))


def _over_updates(key: str, of: str, grids: list[Numbers]) -> Chart:
    by_input = np.array([grid.mean(axis=0) for grid in grids]).T
    picture = HeatMap(_SHARE.text, _rows(by_input), *_ends(by_input))
    axes = Axis("topology update, 0 = start"), Axis("input bin")
    return Chart(key, f"{of}: active by input", *axes, heat_map=picture)


def _grid(key: str, title: str, grid: Numbers, low: float, high: float) -> Chart:
    picture = HeatMap(_SHARE.text, _rows(grid), low, high)
    return Chart(key, title, Axis("input bin"), Axis("output bin"), heat_map=picture)


def _rows(values: Numbers) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
