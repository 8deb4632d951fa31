"""Results beside the run that they are of: ``<run folder>/evals/step_XXXXXXXX-<name>.json``."""

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from smet_train import __version__, opening
from smet_train.errors import SmetError
from smet_train.showing import all_shown
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import files
from smet_train.trained import Trained

EVALS_NAME = "evals"


def require_own_evals(folder: Path) -> None:
    """Raises SmetError if ``folder`` is a link: the run's results would be written elsewhere."""
    try:
        opening.require_own(folder)
    except OSError as error:
        raise SmetError(f"{folder} is not the run's own: {error.strerror}; write --out FILE") from error


def result_path(trained: Trained, name: str) -> Path:
    """Where the result ``name`` of a checkpoint is written by default."""
    return trained.run_folder / EVALS_NAME / f"step_{trained.step:08d}-{name}.json"


def circumstances(trained: Trained, command: list[str], seconds: float) -> dict[str, Any]:
    """What was evaluated, by what, on what and how long."""
    device = next(trained.model.parameters()).device
    return {
        "command": all_shown(command),
        "checkpoint": str(trained.checkpoint.absolute()),
        "step": trained.step,
        "seconds": seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trained.config.train.precision.name,
        "backends": sorted({layer.backend.name for layer in sparse_layers(trained.model).values()}),
        "versions": {
            "smet-train": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **_installed("lm_eval"),
        },
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write ``result`` as JSON; numbers that are not finite as the strings "nan", "inf" and "-inf".

    Raises:
        SmetError: if it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # As text what JSON doesn't know: a metric of a task's own may return anything.
        text = json.dumps(_plain(result), indent=2, allow_nan=False, ensure_ascii=False, default=str)
        files.replace_text(path, text + "\n")
    except OSError as error:
        raise SmetError(f"{path} can't be written ({error.strerror}); write --out FILE", exit_status=1) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _installed(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
