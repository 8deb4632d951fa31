"""Arms that take turns, so that whatever else the machine does hits them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved_seconds(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each of ``rounds`` rounds, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, run in arms.items():
            started_s = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started_s)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median time of each name, in seconds."""
    return {name: median(times) for name, times in seconds.items()}
