"""The user's files and modules that register backends, rules or sources, and the names that settings then may have."""

import hashlib
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from smet_train.config.schema import Backend, Config, DataSource, Drop, Grow
from smet_train.errors import ConfigError, SmetError

log = logging.getLogger(__name__)

# Where names are registered: the choices of which setting, the module and its dictionary by name.
_REGISTRIES: tuple[tuple[type[Enum], str, str, str], ...] = (
    (Backend, "sparsity.backend", "smet_train.sparse.backends", "BACKENDS"),
    (Drop, "topology.drop", "smet_train.topology.rules", "DROPS"),
    (Grow, "topology.grow", "smet_train.topology.rules", "GROWS"),
    (DataSource, "data.source", "smet_train.data.sources", "SOURCES"),
)
_OPEN = tuple(choices for choices, *_ in _REGISTRIES)
_ADDED = "added by a plugin"


def load_plugins(names: Iterable[str]) -> None:
    """Import each file (``….py``) or module once, and let settings have the names that they registered.

    Raises:
        ConfigError: if one is missing, or fails.
    """
    for name in names:
        _load(name)
        for choices, _, module, registry in _REGISTRIES:
            if module in sys.modules:  # else nothing has been registered there
                for registered in getattr(sys.modules[module], registry):
                    _add_choice(choices, registered)


def added(choice: Enum) -> bool:
    """Whether a plugin has added ``choice``, so that nobody here knows which settings it reads."""
    return choice.value == _ADDED


def admit_saved(settings: Mapping[str, Any]) -> None:
    """Let the choices have the names that plugins of saved ``settings``, nested, gave; the plugins are not loaded.

    They are code, and the settings may be somebody else's. A trained model opens without what trained it.
    """
    if not settings.get("plugins"):
        return
    for choices, key, *_ in _REGISTRIES:
        section, _, item = key.partition(".")
        held = settings.get(section)
        name = held.get(item) if isinstance(held, Mapping) else None
        if isinstance(name, str) and name.isidentifier():
            _add_choice(choices, name)


def open_schema(section: type = Config) -> type:
    """The dataclass ``section`` and those in it, with texts where plugins may add names: before any is loaded."""
    types, defaults = get_type_hints(section), section()
    items: list[tuple[str, Any, Any]] = []
    for item in fields(section):
        kind, default = types[item.name], getattr(defaults, item.name)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            kind = open_schema(kind)
            items.append((item.name, kind, field(default_factory=kind)))
        elif kind in _OPEN:
            items.append((item.name, str, field(default=default.name)))
        else:
            items.append((item.name, kind, field(default_factory=partial(copy, default))))
    return make_dataclass(section.__name__, items)


def _add_choice(choices: type[Enum], name: str) -> None:
    """Give an Enum another member. Enums can't be extended by their interface; their tables by name can."""
    if name in choices.__members__:
        return
    member = object.__new__(choices)
    member._name_, member._value_ = name, _ADDED
    choices._member_map_[name] = member
    choices._member_names_.append(name)


def _load(name: str) -> None:
    is_file = name.endswith(".py")
    path = Path(os.path.abspath(os.path.expanduser(name)))
    module_name = f"smet_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}" if is_file else name
    if module_name in sys.modules:
        return
    if is_file and not path.is_file():
        raise ConfigError(f"plugins: {name} is no file, seen from {os.getcwd()}; write the path of a Python file")
    try:
        if not is_file:
            import_module(name)
            return
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    except SmetError as error:
        sys.modules.pop(module_name, None)
        raise ConfigError(f"plugins: {name}: {error}") from error
    except Exception as error:  # the boundary to code that is not ours
        sys.modules.pop(module_name, None)
        raise ConfigError(_what_failed(name, is_file, error)) from error


def _what_failed(name: str, is_file: bool, error: Exception) -> str:
    if not is_file and isinstance(error, ModuleNotFoundError) and error.name and name.startswith(error.name):
        return f"plugins: there is no module {name}; write the path of a file, ending in .py, or set PYTHONPATH"
    last = traceback.extract_tb(error.__traceback__)[-1]
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
    return f"plugins: {name} fails at {file}:{line}: {type(error).__name__}: {error}"
