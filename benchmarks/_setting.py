"""What every benchmark writes beside its figures: when, on what, with which versions, by which command."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from smet_train import __version__


def processor() -> str:
    """The name of the processor, or of the GPU where the benchmark uses one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def write_result(name: str, rows: list[dict[str, Any]], folder: Path | None) -> None:
    """Print one JSON line with the figures and their setting, and keep it in ``folder``."""
    today = datetime.date.today().isoformat()
    result = {
        "benchmark": name,
        "date": today,
        "hardware": processor(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "smet_train": __version__,
        },
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
    }
    print(json.dumps(result))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{today}_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
