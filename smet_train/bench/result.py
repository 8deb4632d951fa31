"""``result.json``: bars, raw figures, and on what they were measured."""

import datetime
import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from smet_train import __version__


@dataclass(frozen=True, slots=True)
class Bar:
    """A claim with its threshold: ``value`` was measured, ``bar`` is what it is held against."""

    name: str
    value: float
    bar: float
    holds: bool


def processor() -> str:
    """The GPU that torch sees, or else the processor with its cores and torch's threads."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def measured_on() -> dict[str, Any]:
    """Date, hardware and versions, to stand beside every figure."""
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": processor(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "smet_train": __version__,
        },
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: a ratio to nothing, or the error of one sample, has no value."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_result(folder: Path, name: str, bars: list[Bar], figures: dict[str, Any], command: str) -> Path:
    """Write ``folder/result.json`` and return its path."""
    result = {
        "benchmark": name,
        **measured_on(),
        "command": command,
        "bars": [asdict(bar) for bar in bars],
        **figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    path.write_text(json.dumps(_finite(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
