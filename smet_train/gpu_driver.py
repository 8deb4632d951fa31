"""Whether this machine has a driver for GPUs; without torch, which takes seconds to say the same."""

import ctypes
import sys
from pathlib import Path

from smet_train.errors import ConfigError

_AMD = Path("/dev/kfd")  # torch brings all else that AMD's GPUs need


def require_gpu_driver(device: str) -> None:
    """Raises ConfigError if ``device`` (of ``train.device``) is a GPU, and nothing on this machine can drive one.

    What is installed may still not work: torch has the last word.
    """
    if device == "cuda" and not has_driver():
        raise ConfigError(
            f"train.device={device}: there is no driver for a GPU on this machine; write train.device=cpu or auto"
        )


def has_driver() -> bool:
    """Whether something on this machine may drive a GPU."""
    if not sys.platform.startswith("linux") or _AMD.exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
