"""Where a model is computed."""

import torch

from smet_train.errors import ConfigError


def choose_device(name: str, setting: str) -> torch.device:
    """The device ``name``, cpu or cuda; ``auto`` is the GPU where torch sees one, else the CPU.

    Args:
        setting: how the user asks for one, for instance ``--device ``; messages begin with it.

    Raises:
        ConfigError: if a GPU is asked for and torch sees none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"{setting}{name}: torch sees no GPU here; write {setting}cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
