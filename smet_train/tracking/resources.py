"""Memory that the process holds now and has held at most."""

import resource
import sys
from pathlib import Path

import psutil
import torch


def peak_rss_bytes() -> int:
    """The most that this process has had resident, in bytes.

    On Linux that of the kernel's status file: ``ru_maxrss`` starts at what the parent had when it made this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # ru_maxrss counts KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_use(device: torch.device) -> dict[str, int]:
    """Bytes by the names of the ``memory`` event; the device's are 0 on a CPU."""
    rss_bytes = psutil.Process().memory_info().rss
    on_gpu = device.type == "cuda"
    return {
        "rss_bytes": rss_bytes,
        # The kernel's maximum is brought up to date now and then.
        "peak_rss_bytes": max(rss_bytes, peak_rss_bytes()),
        "device_bytes": torch.cuda.memory_allocated(device) if on_gpu else 0,
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else 0,
    }
