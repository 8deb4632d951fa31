"""A chart as a bokeh figure."""

from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, LinearColorMapper, PrintfTickFormatter, Range1d
from bokeh.models.annotations import ColorBar, Legend, LegendItem
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

from smet_train.report.charts import PALETTE, Axis, Bars, Chart, HeatMap, Series, highest, legend_labels

Drawn = Any  # a GlyphRenderer; what it is generic in exists for type checkers alone
_HEIGHT_PX = 330
_LEGEND_ROW_PX = 27
_TEXT = "13px"
_NUMBER = "%.7g"
_LONG_LABEL = 22
_MARKS_INK = 25.0  # so many marks may be as dark as a mark can be; more of them are paler


def make_figure(chart: Chart) -> figure:
    """Fills the width that it is given. Legend entries hide what they name; pointing at something tells its numbers."""
    drawn = figure(
        height=_HEIGHT_PX,
        sizing_mode="stretch_width",
        x_axis_type="log" if chart.x.log else "linear",
        y_axis_type="log" if chart.y.log else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,  # on a phone a finger on a chart scrolls the page
        output_backend="canvas",
    )
    drawn.toolbar.logo = None  # it is a link
    drawn.toolbar.autohide = True
    by_label: dict[str, list[Drawn]] = {label: [] for label in legend_labels(chart)}
    if chart.marks:
        ink = min(0.55, _MARKS_INK / len(chart.marks.x))
        marks = drawn.vspan(x=list(chart.marks.x), line_color="#606060", line_alpha=ink, line_dash="dashed")
        by_label[chart.marks.label].append(marks)
    for band in chart.bands:
        area = drawn.varea(
            x=list(band.x), y1=list(band.low), y2=list(band.high), fill_color=_color(band.color), fill_alpha=0.15
        )
        by_label[band.label].append(area)
    for line in chart.series:
        by_label.setdefault(line.label, []).extend(_line(drawn, line))
    for bars in chart.bars:
        by_label[bars.label].append(_bars(drawn, bars))
    _add_hover(drawn, chart)
    if chart.heat_map:
        _add_heat_map(drawn, chart, chart.heat_map)
    _label_axis(drawn.xaxis[0], chart.x)
    _label_axis(drawn.yaxis[0], chart.y)
    if chart.x.categories:
        drawn.x_range = Range1d(start=-0.6, end=len(chart.x.categories) - 0.4)
    if chart.y.from_zero:
        drawn.y_range = Range1d(start=0, end=1.05 * highest(chart))
    if chart.shows_legend:
        _add_legend(drawn, by_label)
    return drawn


def _color(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _line(drawn: figure, line: Series) -> list[Drawn]:
    names = list(line.names) or [line.label] * len(line.x)
    source = ColumnDataSource({"x": np.array(line.x), "y": np.array(line.y), "name": names})
    if not line.names:  # one name for all would be written once a point
        source.remove("name")
    ink: dict[str, Any] = {"color": _color(line.color), "alpha": 0.95 if line.strong else 0.3, "source": source}
    label = line.label or (line.names[0] if line.names else "")
    made: list[Drawn] = []
    if line.style != "points":
        dash = "dashed" if line.dashed else "solid"
        made.append(drawn.line("x", "y", line_width=2 if line.strong else 1, line_dash=dash, name=label, **ink))
    if line.style != "line":
        made.append(drawn.scatter("x", "y", size=6, name=label, **ink))
    if any(line.errors):
        source.data["low"] = np.array(line.y) - np.array(line.errors)
        source.data["high"] = np.array(line.y) + np.array(line.errors)
        made.append(drawn.segment("x", "low", "x", "high", line_width=2, **ink))
    return made


def _bars(drawn: figure, bars: Bars) -> Drawn:
    sizes = np.array(bars.tops) - np.array(bars.bottoms)
    data = {"x": np.arange(len(sizes)), "bottom": np.array(bars.bottoms), "top": np.array(bars.tops), "y": sizes}
    return drawn.vbar(
        "x", bottom="bottom", top="top", width=0.7, color=_color(bars.color), line_color="white", line_width=0.5,
        source=ColumnDataSource(data), name=bars.label,
    )  # fmt: skip


def _add_hover(drawn: figure, chart: Chart) -> None:
    """One hover tool for all renderers of a label; it tells a point's own name where it has one."""
    groups: dict[tuple[str, bool], list[Drawn]] = {}
    renderers: list[Drawn] = list(drawn.renderers)
    for renderer in renderers:
        if renderer.name is not None:
            named = "name" in renderer.data_source.column_names
            groups.setdefault(("" if named else renderer.name, named), []).append(renderer)
    for (label, named), found in groups.items():
        rows = [("", "@name" if named else _as_template(label))] if named or label else []
        if not chart.x.categories:
            rows.append((chart.x.text, f"@x{{{_NUMBER}}}"))
        rows.append((chart.y.text, f"@y{{{_NUMBER}}}"))
        drawn.add_tools(
            HoverTool(
                renderers=found, tooltips=rows, formatters={"@x": "printf", "@y": "printf"}, visible=False,
                point_policy="snap_to_data", line_policy="nearest",
            )
        )  # fmt: skip


def _as_template(label: str) -> str:
    """``label`` as bokeh reads the text of a tooltip: as HTML in which @ and $ name columns and places."""
    return escape(label).replace("@", "@@").replace("$", "&#36;")


def _add_heat_map(drawn: figure, chart: Chart, heat_map: HeatMap) -> None:
    rows = np.array(heat_map.rows)
    height, width = rows.shape
    mapper = LinearColorMapper(palette=Viridis256, low=heat_map.low, high=heat_map.high)
    place: dict[str, Any] = {"x": -0.5, "y": -0.5, "dw": width, "dh": height, "color_mapper": mapper}
    image = drawn.image(image=[rows], **place)
    drawn.x_range = Range1d(start=-0.5, end=width - 0.5)
    drawn.y_range = Range1d(start=-0.5, end=height - 0.5)
    drawn.grid.visible = False
    bar = ColorBar(
        color_mapper=mapper, width=12, title=heat_map.label, title_text_font_size="12px",
        major_label_text_font_size="12px", title_text_font_style="normal", background_fill_alpha=0,
        formatter=PrintfTickFormatter(format="%.3g"),
    )  # fmt: skip
    drawn.add_layout(bar, "right")
    rows_told = [(chart.x.text, "$x{0}"), (chart.y.text, "$y{0}"), (heat_map.label, "@image{%.4g}")]
    drawn.add_tools(HoverTool(renderers=[image], tooltips=rows_told, formatters={"@image": "printf"}, visible=False))


def _label_axis(axis: Any, described: Axis) -> None:
    axis.axis_label = described.text or None
    axis.axis_label_text_font_size = axis.major_label_text_font_size = _TEXT
    axis.axis_label_text_font_style = "normal"
    if described.categories:
        axis.ticker = FixedTicker(ticks=list(range(len(described.categories))))
        axis.major_label_overrides = dict(enumerate(described.categories))
        axis.minor_tick_line_color = None
        if len(described.categories) > 3:
            axis.major_label_orientation = 0.5
    elif described.ticks:
        axis.ticker = FixedTicker(ticks=list(described.ticks))
        axis.formatter = PrintfTickFormatter(format="%g")
    else:
        axis.ticker.desired_num_ticks = 5
        if not described.log:
            axis.formatter = PrintfTickFormatter(format="%.6g")  # not 1.000e-3


def _add_legend(drawn: figure, by_label: dict[str, list[Drawn]]) -> None:
    shown = {label: renderers for label, renderers in by_label.items() if label and renderers}
    columns = 1 if max(map(len, shown)) > _LONG_LABEL else 2
    items = [LegendItem(label={"value": label}, renderers=renderers) for label, renderers in shown.items()]
    legend = Legend(
        items=items, ncols=columns, click_policy="hide", label_text_font_size=_TEXT, border_line_color=None,
        location="left", margin=4, spacing=8, glyph_height=16,
    )  # fmt: skip
    drawn.add_layout(legend, "below")
    drawn.height = _HEIGHT_PX + _LEGEND_ROW_PX * -(-len(items) // columns)
