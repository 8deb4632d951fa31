"""A configuration as plain dictionaries and YAML, without Hydra."""

import os
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

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
    """The configuration that :func:`to_dict` gave; what its version did not have is a default. No plugin is loaded: the
    names of those that the settings list stay possible.

    Raises:
        ConfigError: for a key that this version does not have, an unknown name of a choice, or a value of another kind
            or outside of its range.
    """
    if not isinstance(settings, dict):
        raise ConfigError(f"the settings are {str(settings)[:80]!r}, no settings of smet-train")
    admit_saved(settings)
    config: Config = _section(Config, settings, "")
    return config


def _section(kind: Any, settings: Any, prefix: str) -> Any:
    types, items = get_type_hints(kind), {item.name: item for item in fields(kind)}
    values: dict[str, Any] = {}
    if not isinstance(settings, dict):
        raise _unfit(prefix.rstrip("."), settings, "a section")
    for name, value in settings.items():
        key = f"{prefix}{name}"[:80]
        if name not in types:
            raise ConfigError(f"the setting {key} is of another version of smet-train; read it with that version")
        if is_dataclass(types[name]):
            values[name] = _section(types[name], value, f"{key}.")
        elif isinstance(types[name], type) and issubclass(types[name], Enum):
            if not isinstance(value, str) or value not in types[name].__members__:
                raise ConfigError(
                    f"{key}={str(value)[:80]} is of another version of smet-train; read it with that version"
                )
            values[name] = types[name][value]
        else:
            allowed = items[name].metadata["range"]
            numbers = value if isinstance(value, list) else [value]
            if not _is_of(types[name], value):
                raise _unfit(key, value, "of its kind")
            if allowed is not None and not all(number is None or allowed.holds(number) for number in numbers):
                raise _unfit(key, value, allowed.text)
            values[name] = value
    return kind(**values)


def _is_of(kind: Any, value: Any) -> bool:
    """Whether ``value`` is what a setting of the type ``kind`` may be."""
    if get_origin(kind) is UnionType:
        return any(_is_of(part, value) for part in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(get_args(kind)[0], item) for item in value)
    if kind is float:
        return type(value) in (int, float)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, str) and value in kind.__members__
    return type(value) is kind


def _unfit(key: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"the setting {key} is {str(value)[:80]!r}, not {allowed}; no smet-train has written it")


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
