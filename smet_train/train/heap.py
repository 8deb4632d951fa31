"""How the C library deals with tensors that are freed.

glibc keeps freed blocks below 32 MiB for the next request. But torch asks for aligned blocks, and a freed one has no
room to be aligned once more, so blocks of the same size are seldom taken again: a process holds far more than its
tensors. Blocks of their own mapping go back to the system at once; their pages are zeroed anew each time, which takes
time. ``benchmarks/results`` has both.
"""

import ctypes

from smet_train.errors import ConfigError

_M_MMAP_THRESHOLD = -3  # of malloc.h
_BYTES = 1 << 20


def release_freed_memory() -> None:
    """From now on, give freed tensors of a MiB or more back to the system at once.

    Raises:
        ConfigError: if this system's C library can't be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not mallopt(_M_MMAP_THRESHOLD, _BYTES):
        raise ConfigError(
            "train.release_freed_memory=true: this system's C library has no such setting (glibc has); write false"
        )
