"""The boundary with Hydra: YAML files and overrides in, a validated dataclass out. What runs is in ``launch.py``."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.smet_launcher._settings import store_settings
from smet_train.config import messages
from smet_train.config.fields import leaves, spell
from smet_train.config.identity import default_run_folder, fresh_folder, short_hash
from smet_train.config.locate import config_folder
from smet_train.config.plain import flatten
from smet_train.config.plugins import load_plugins, open_schema
from smet_train.config.saved import read_settings
from smet_train.config.schema import Config
from smet_train.config.validate import check_range, check_typed, validate
from smet_train.errors import ConfigError

MAIN_CONFIG = "train"
RESUMED_CONFIG = "resumed"
VERSION_BASE = "1.3"

_KNOWN_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)

OwnSettings = TypeVar("OwnSettings")


def compose(overrides: list[str], *, config_name: str = MAIN_CONFIG, config_dir: Path | None = None) -> Config:
    """The validated configuration that ``smet-train`` with these overrides trains.

    Args:
        config_name: the YAML file to start from, without ``.yaml``.
        config_dir: a folder with further YAML files, searched after the shipped ones.

    Raises:
        ConfigError: for an unknown key or option, a wrong type, a value out of range, or settings at odds.
    """
    with translated():
        config = to_config(compose_settings(overrides, config_name, config_dir))
    validate(config)
    return config


def compose_run(run_folder: Path, overrides: list[str] | None = None) -> Config:
    """The validated configuration of the run in ``run_folder``, with ``overrides`` on top.

    Raises:
        ConfigError: as :func:`compose`; also if the folder holds no run or its config.yaml can't be read.
    """
    store_run(run_folder)
    return compose(overrides or [], config_name=RESUMED_CONFIG)


def store_run(run_folder: Path) -> dict[str, Any]:
    """Let Hydra compose ``RESUMED_CONFIG`` from the config.yaml of ``run_folder``; returns the settings in it, nested.

    Groups come on top of it: method=NAME, say, gives what the preset says, and all other settings are the run's, but
    for its plugins, which are code: those that an override names are loaded, and no others.
    """
    saved = read_settings(run_folder)
    try:
        with translated():
            OmegaConf.merge(OmegaConf.structured(open_schema()), _escaped(saved))
    except ConfigError as error:
        raise ConfigError(f"{run_folder / 'config.yaml'}: {error}") from error
    hydra_settings = yaml.safe_load((config_folder() / f"{MAIN_CONFIG}.yaml").read_text(encoding="utf-8"))["hydra"]
    hydra_settings["run"]["dir"] = _escaped(str(run_folder))
    groups = [{"model": None}, {"data": None}, {"method": None}]
    defaults = ["schema", "_self_", *groups, {"override hydra/hydra_logging": "none"}]
    node = {"defaults": defaults, "hydra": hydra_settings, **_escaped(saved), "plugins": []}
    ConfigStore.instance().store(name=f"{RESUMED_CONFIG}.yaml", node=node)
    return saved


def compose_own(prefix: str, overrides: list[str], defaults: OwnSettings) -> OwnSettings:
    """The settings of a command of its own: ``defaults`` with ``<prefix>KEY=VALUE``, checked against their ranges.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a value out of range.
    """
    known = {leaf.key: leaf for leaf in leaves(defaults, prefix)}
    for override in overrides:
        if override.partition("=")[0] not in known:
            raise ConfigError(f"unknown key {override.partition('=')[0]}; there is {', '.join(known)}")
    name = prefix.rstrip(".")
    with translated():
        whole = OmegaConf.merge({name: OmegaConf.structured(defaults)}, *map(_from_dotlist, overrides))
        settings = cast(dict[str, Any], OmegaConf.to_object(whole))[name]
    for leaf in known.values():
        check_range(leaf, getattr(settings, leaf.key.removeprefix(prefix)))
    return cast(OwnSettings, settings)


def _from_dotlist(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except yaml.YAMLError as error:
        raise ConfigError(messages.unreadable_override(override)) from error


def to_config(settings: DictConfig) -> Config:
    """What Hydra composed, without its own section, as the dataclass that the program reads; its plugins are loaded.

    What ``settings`` were read as is kept with them: the name of a run folder asks for it again.
    """
    kept = OmegaConf.get_cache(settings)["smet.config"]
    if "config" not in kept:
        kept["config"] = _to_config(settings)
    return cast(Config, kept["config"])


def _to_config(settings: DictConfig) -> Config:
    trained = OmegaConf.masked_copy(settings, [str(key) for key in settings if key != "hydra"])
    # By way of plain values: a key that an override added with a plus sign would otherwise be let through.
    plain: Any = OmegaConf.to_container(trained, resolve=True, enum_to_str=True)
    _check_complete(plain)
    load_plugins(plain["plugins"])
    config = OmegaConf.to_object(OmegaConf.merge(_types(), _escaped(plain)))
    assert isinstance(config, Config)
    check_typed(config, settings.hydra.overrides.task if "hydra" in settings else ())
    return config


@cache
def _types() -> DictConfig:
    """The settings with their types and defaults; merging copies them."""
    return OmegaConf.structured(Config)


def _check_complete(plain: Any) -> None:
    """Raises ConfigError if an override took a setting away: its default would be trained instead, unasked for."""
    given = flatten(plain)
    for leaf in leaves(Config()):
        if given.get(leaf.key, "???") == "???":
            raise ConfigError(
                f"{leaf.key} has no value ({leaf.help}); write for instance {leaf.key}={spell(leaf.default)}"
            )


def _escaped(value: Any) -> Any:
    """Plain values with ``${`` written so that OmegaConf reads it as these two characters."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def compose_settings(overrides: list[str], config_name: str, config_dir: Path | None) -> DictConfig:
    """What Hydra composes, with its own section ``hydra``."""
    with initialized():
        return hydra_compose(config_name, searching(overrides, config_dir))


def hydra_compose(config_name: str, overrides: list[str]) -> DictConfig:
    """``hydra.compose`` whose every exception is a ConfigError or one that :func:`translated` knows.

    Hydra asserts, or trips over a type, for some overrides that its grammar lets through, such as ``model=null``.
    """
    try:
        return hydra.compose(config_name, overrides, return_hydra_config=True)
    except _KNOWN_ERRORS:
        raise
    except Exception as error:
        raise ConfigError(messages.unusable_override(_culprit(config_name, overrides), error)) from error


def _culprit(config_name: str, overrides: list[str]) -> str:
    """The first of ``overrides`` that Hydra trips over by itself."""
    for override in overrides:
        try:
            hydra.compose(config_name, [override], return_hydra_config=True)
        except _KNOWN_ERRORS:
            continue
        except Exception:
            return override
    return " ".join(overrides)


@contextmanager
def initialized() -> Iterator[None]:
    """Within it, Hydra finds the shipped files, the schema, and the names of run folders."""
    register()
    with hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
        yield


def searching(overrides: list[str], config_dir: Path | None) -> list[str]:
    """``overrides`` that have Hydra look into ``config_dir`` too.

    Raises:
        ConfigError: if it is no folder.
    """
    if config_dir is None:
        return overrides
    if not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir} is no folder; give one that holds groups, such as experiment/")
    quoted = str(config_dir.absolute()).replace("\\", "\\\\").replace("'", r"\'")
    return [*overrides, f"hydra.searchpath=['file://{quoted}']"]


@contextmanager
def translated() -> Iterator[None]:
    """Turn the errors of Hydra, OmegaConf and YAML into ConfigError."""
    try:
        yield
    except _KNOWN_ERRORS as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        return messages.unreadable_override(error.override)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return messages.unknown_option(group, name, error.options)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}; this is not YAML"
    text = str(error)
    several = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text)
    if several:
        return messages.sweep_without_flag(several[1])
    if error.__cause__ is not None:
        text = f"{error.__cause__}\n{text}"
    return messages.explain(text)


def register() -> None:
    """Tell Hydra, once, the schema, the names of folders, and the settings of launchers and sweepers."""
    if "schema.yaml" in ConfigStore.instance().repo:
        return
    Plugins.instance()  # imports all plugins that are installed; what they tell Hydra, ours comes after
    store_settings()
    ConfigStore.instance().store(name="schema", node=open_schema())
    OmegaConf.register_new_resolver("smet.run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("smet.sweep_folder", _sweep_folder, replace=True)
    OmegaConf.register_new_resolver("smet.by_method", _by_method, replace=True)


def _by_method(otherwise: Any, choices: DictConfig, *, _root_: DictConfig) -> Any:
    """``${smet.by_method:VALUE,{METHOD:VALUE,…}}``: what an experiment sets for the method that is chosen beside it."""
    return choices.get(_root_.method, otherwise)


def _run_folder(*, _root_: DictConfig) -> str:
    config = to_config(_root_)
    return str(default_run_folder(config, _name(_root_, config.method)))


def _sweep_folder(*, _root_: DictConfig) -> str:
    """``multirun/<name>-<hash of the overrides>``, a fresh one under ``checkpoint.resume=never``."""
    # Where the jobs run is not what they are: a sweep that was begun here goes on on a cluster.
    overrides = [str(one) for one in _root_.hydra.overrides.task if not str(one).startswith("+cluster=")]
    overrides += [f"{key}={value}" for key, value in (_root_.hydra.sweeper.get("params") or {}).items()]
    folder = Path("multirun") / f"{_name(_root_, 'sweep')}-{short_hash(sorted(overrides))}"
    fresh = OmegaConf.select(_root_, "checkpoint.resume") == "never"
    return str(fresh_folder(folder.absolute()) if fresh else folder)


def _name(root: DictConfig, otherwise: str) -> str:
    """The experiment's name, as far as a folder may be called by it."""
    experiment = root.hydra.runtime.choices.get("experiment")
    return re.sub(r"[^\w.,=+-]+", "_", str(experiment)) if experiment else otherwise
