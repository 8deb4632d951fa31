"""PNG plots of benchmark figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_lines(
    path: Path, panels: Sequence[tuple[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]], x: str, y: str
) -> None:
    """Panels side by side, each a title and lines by label: (x values, y values)."""
    import matplotlib  # takes a second; only a benchmark that draws pays for it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels, strict=True):
        _draw(axis, title, lines, x, y)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw(axis: Any, title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> None:
    for label, (xs, ys) in lines.items():
        axis.plot(xs, ys, label=label, linewidth=1.4)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
