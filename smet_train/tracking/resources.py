"""Memory that the process holds now and has held at most."""

import resource
import sys

import psutil
import torch


def memory_use(device: torch.device) -> dict[str, int]:
    """Bytes by the names of the ``memory`` event; the device's are 0 on a CPU."""
    # ru_maxrss counts KiB, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    rss_bytes = psutil.Process().memory_info().rss
    on_gpu = device.type == "cuda"
    return {
        "rss_bytes": rss_bytes,
        # The kernel's maximum is brought up to date now and then.
        "peak_rss_bytes": max(rss_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
        "device_bytes": torch.cuda.memory_allocated(device) if on_gpu else 0,
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else 0,
    }
