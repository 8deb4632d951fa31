"""Means and how sure they are."""

from collections.abc import Sequence

import numpy as np


def mean_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error (sample standard deviation over the root of n); the error of one sample is infinite."""
    values = np.asarray(samples, dtype=float)
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("inf")
    return float(values.mean()), error


def confidence_interval(samples: Sequence[float], level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same samples give the same interval."""
    values = np.asarray(samples, dtype=float)
    draw = np.random.default_rng(0)
    means = values[draw.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
