"""Fewer points to draw, with every peak still there."""

from itertools import pairwise

import numpy as np

from smet_train.report.runs import Numbers

POINTS_OF_A_CHART = 5000
_FEWEST = 200


def thinned(x: Numbers, y: Numbers, limit: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most ``limit`` of the points: the lowest and the highest of each of ``limit / 2`` runs of points, in order.

    Infinite values count as gaps. Where a run of points has nothing finite, its first point stands for it.
    """
    y = np.where(np.isfinite(y), y, np.nan)
    if len(x) > limit:
        kept: set[int] = set()
        edges = np.linspace(0, len(x), limit // 2 + 1).astype(int)
        for start, end in pairwise(edges.tolist()):
            part = y[start:end]
            if np.isnan(part).all():
                kept.add(int(start))
            else:
                kept |= {int(start + np.nanargmin(part)), int(start + np.nanargmax(part))}
        at = np.array(sorted(kept))
        x, y = x[at], y[at]
    return tuple(x.tolist()), tuple(y.tolist())


def share(n_series: int) -> int:
    """Points of each of ``n_series`` in one chart."""
    return max(_FEWEST, POINTS_OF_A_CHART // max(1, n_series))


def smoothed(y: Numbers, window: int) -> Numbers:
    """The mean of each value and those before it, ``window`` at most; what is not finite is left out of it."""
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, len(y) + 1)
    start = np.maximum(0, end - window)
    held = counts[end] - counts[start]
    means: Numbers = np.where(held > 0, (sums[end] - sums[start]) / np.maximum(held, 1), np.nan)
    return means
