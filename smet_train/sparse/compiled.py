"""What the kernels that numba compiles for this CPU have in common; numba is read when one is first called."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

# Sums may be reordered, which vector instructions need; NaN and infinity keep their meaning.
MATH = {"reassoc", "contract", "nsz", "arcp"}


@functools.cache
def numba_is_installed() -> bool:
    """Whether kernels can be compiled; numba is looked for once, not imported."""
    return find_spec("numba") is not None


@contextmanager
def on_threads(count: int) -> Iterator[int]:
    """Run the kernels inside on ``count`` threads, or as many as there are; yields how many.

    numba and torch may share one OpenMP, so torch's own number of threads is put back.
    """
    from numba import config, set_num_threads

    threads = max(1, min(count, int(config.NUMBA_NUM_THREADS)))  # type: ignore[attr-defined]
    set_num_threads(threads)
    try:
        yield threads
    finally:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
