"""Charts as PNG files, drawn by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smet_train import opening
from smet_train.replacing import replacing
from smet_train.report.charts import PALETTE, Axis, Chart, Series, highest

_DPI = 130
_MARK = {"Software": "smet-report"}
_HEAD_BYTES = 1024  # of a PNG, with the mark in it
_SIZE_INCHES = (7.0, 4.4)


def draw_images(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write ``folder/<key>.png`` for each chart; returns the paths.

    Raises:
        ValueError: if a key leads into another folder.
    """
    paths = []
    for chart in charts:
        opening.plain_name(chart.key)
        path = folder / f"{chart.key}.png"
        with replacing(path) as part:
            draw(chart).savefig(part, format="png", dpi=_DPI, metadata=_MARK)
        paths.append(path)
    return paths


def is_own(path: Path) -> bool:
    """Whether :func:`draw_images` has written ``path``."""
    with opening.regular(path) as file:
        head = file.read(_HEAD_BYTES)
    return all(f"{key}\0{value}".encode() in head for key, value in _MARK.items())


def draw(chart: Chart) -> Figure:
    """The chart as a matplotlib figure, with its legend below. Texts are no formulas of TeX."""
    with rc_context({"text.parse_math": False}):
        return _draw(chart)


def _draw(chart: Chart) -> Figure:
    drawn = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(chart.title, fontsize=11)
    axes.grid(alpha=0.25)
    if chart.marks:
        axes.vlines(chart.marks.x, 0, 1, transform=axes.get_xaxis_transform(), colors="#808080", linestyles="dotted",
                    alpha=min(0.55, 25 / len(chart.marks.x)), linewidth=0.8, label=chart.marks.label)  # fmt: skip
    for band in chart.bands:
        axes.fill_between(band.x, band.low, band.high, color=_color(band.color), alpha=0.15, linewidth=0)
    told = {line.label: line for line in sorted(chart.series, key=lambda line: line.strong)}  # a strong one last
    for line in chart.series:
        _draw_line(axes, line, line.label if told[line.label] is line else "")
    for bars in chart.bars:
        sizes = np.array(bars.tops) - np.array(bars.bottoms)
        axes.bar(range(len(sizes)), sizes, 0.7, bottom=bars.bottoms, color=_color(bars.color), label=bars.label)
    if chart.heat_map:
        rows = chart.heat_map.rows
        shown = axes.imshow(rows, origin="lower", aspect="auto", vmin=chart.heat_map.low, vmax=chart.heat_map.high)
        drawn.colorbar(shown, ax=axes, label=chart.heat_map.label)
        axes.grid(visible=False)
    _label(axes, "x", chart.x)
    _label(axes, "y", chart.y)
    if chart.y.from_zero:
        axes.set_ylim(0, 1.05 * highest(chart))
    if chart.shows_legend:
        drawn.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return drawn


def _color(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _draw_line(axes: Axes, line: Series, label: str) -> None:
    """``label`` is empty where another series stands for it in the legend."""
    label = f" {label}" if label.startswith("_") else label  # else matplotlib takes it for none
    pattern = "none" if line.style == "points" else "--" if line.dashed else "-"
    axes.errorbar(
        line.x,
        line.y,
        yerr=line.errors if any(line.errors) else None,
        label=label or "_nolegend_",
        color=_color(line.color),
        alpha=0.95 if line.strong else 0.3,
        linewidth=1.6 if line.strong else 0.8,
        linestyle=pattern,
        marker="" if line.style == "line" else "o",
        markersize=3.5,
        capsize=3,
    )


def _label(axes: Axes, which: Literal["x", "y"], described: Axis) -> None:
    axes.set(**{f"{which}label": described.text})
    if described.log:
        axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if described.categories:
        axis.set_ticks(range(len(described.categories)), described.categories)
        many = len(described.categories) > 3
        axes.tick_params(which, labelsize=8, labelrotation=25 if many else 0)
    elif described.ticks:
        axis.set_ticks(described.ticks, [f"{tick:g}" for tick in described.ticks])
        axis.set_ticks([], minor=True)
