"""A configuration as plain dictionaries and YAML, without Hydra."""

import os
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from smet_train.config.plugins import admit_saved
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.replacing import replacing


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionaries of numbers, texts, lists and None; Enum members by name. JSON and YAML can hold it."""
    settings: dict[str, Any] = plain(config)
    return settings


def plain(value: Any) -> Any:
    """A setting's value, or a section, as JSON and YAML can hold it."""
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.name
    return list(value) if isinstance(value, list) else value


def from_dict(settings: dict[str, Any]) -> Config:
    """The configuration that :func:`to_dict` gave, its plugins loaded; what its version did not have is a default.

    Raises:
        ConfigError: for a key that this version does not have, or an unknown name of a choice.
    """
    admit_saved(settings)
    config: Config = _section(Config, settings, "")
    return config


def _section(kind: Any, settings: dict[str, Any], prefix: str) -> Any:
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if name not in types:
            raise ConfigError(f"the setting {key} is of another version of smet-train; read it with that version")
        if is_dataclass(types[name]):
            values[name] = _section(types[name], value, f"{key}.")
        elif isinstance(types[name], type) and issubclass(types[name], Enum):
            if value not in types[name].__members__:
                raise ConfigError(f"{key}={value} is of another version of smet-train; read it with that version")
            values[name] = types[name][value]
        else:
            values[name] = value
    return kind(**values)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML; whenever this process dies, ``path`` is the old file or the new one.

    Raises:
        ConfigError: if it can't be written (disk full, no permission).
    """
    try:
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            yaml.safe_dump(to_dict(config), file, sort_keys=False)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror}); make room or permission and start the same command again",
            exit_status=1,
        ) from error
