"""What a chart shows, as plain data that both renderers draw: no library's objects, nothing about pixels.

Numbers are as recorded; what is not a number is NaN and leaves a gap.
"""

from dataclasses import dataclass
from typing import Literal

# Told apart by most of those who see colours differently (Okabe and Ito, 2008), then three more.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8C564B", "#6A3D9A", "#999933",
)  # fmt: skip
MOST_IN_LEGEND = 12

Style = Literal["line", "points", "both"]


@dataclass(frozen=True, slots=True)
class Axis:
    """``label`` names the quantity, ``unit`` what it is counted in. With ``categories`` positions are 0, 1, 2 …; with
    ``ticks`` those positions are marked and no others; ``from_zero`` shows the whole of what is drawn."""

    label: str
    unit: str = ""
    log: bool = False
    categories: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()
    from_zero: bool = False

    @property
    def text(self) -> str:
        """What an axis says: the quantity, and its unit in brackets."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, slots=True)
class Series:
    """A line or points. Series with one ``label`` share an entry in the legend.

    Attributes:
        color: a number of the palette, the same for the same run in every chart.
        strong: drawn thick and opaque; else thin and pale, as what lies behind a mean.
        errors: half lengths of the error bars, or empty.
        names: what each point is, for whoever points at it, or empty.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    color: int = 0
    style: Style = "line"
    strong: bool = True
    dashed: bool = False
    errors: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar in each category, from ``bottoms`` to ``tops``."""

    label: str
    bottoms: tuple[float, ...]
    tops: tuple[float, ...]
    color: int = 0


@dataclass(frozen=True, slots=True)
class Band:
    """The region between ``low`` and ``high``; it belongs to the legend's entry ``label``."""

    label: str
    x: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    color: int = 0


@dataclass(frozen=True, slots=True)
class Marks:
    """Vertical lines."""

    label: str
    x: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """``rows[i][j]`` colours the cell (x = j, y = i); ``low`` and ``high`` are the ends of the colours."""

    label: str
    rows: tuple[tuple[float, ...], ...]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture; ``key`` names its file, ``note`` is a sentence below its title."""

    key: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    bars: tuple[Bars, ...] = ()
    bands: tuple[Band, ...] = ()
    marks: Marks | None = None
    heat_map: HeatMap | None = None
    note: str = ""

    @property
    def shows_legend(self) -> bool:
        """Whether there is something to tell apart, and not too much of it."""
        return 1 < len(legend_labels(self)) <= MOST_IN_LEGEND


def legend_labels(chart: Chart) -> list[str]:
    """All labels once, in the order in which they are drawn."""
    marks = [chart.marks.label] if chart.marks else []
    drawn = [*(line.label for line in chart.series), *(bars.label for bars in chart.bars)]
    return [label for label in dict.fromkeys([*drawn, *marks]) if label]


def highest(chart: Chart) -> float:
    """The largest y that is drawn by lines and bars."""
    tops = [y for line in chart.series for y in line.y] + [top for bars in chart.bars for top in bars.tops]
    return max((top for top in tops if top == top), default=1.0) or 1.0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A chart that can't be drawn, and why, in a sentence."""

    title: str
    why: str


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` of texts below ``columns``; the first column names the row, the others hold what is compared.

    Attributes:
        folded: long, so shown only when asked for.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Charts and tables that belong together."""

    title: str
    charts: tuple[Chart | LeftOut, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A whole page; ``notes`` are sentences about the runs."""

    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()

    @property
    def charts(self) -> list[Chart]:
        """Those that are drawn, in the order of the page."""
        return [chart for section in self.sections for chart in section.charts if isinstance(chart, Chart)]

    @property
    def left_out(self) -> list[LeftOut]:
        """Those that the runs hold nothing for, and why."""
        return [chart for section in self.sections for chart in section.charts if isinstance(chart, LeftOut)]
