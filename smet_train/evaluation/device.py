"""Where a trained model is computed."""

import torch

from smet_train.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device ``name``; ``auto`` is the GPU where torch sees one, else the CPU.

    Raises:
        ConfigError: if it names a GPU and torch sees none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; write --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """For a person: the GPU's own name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
