"""The boundary with Hydra: YAML files and overrides in, a validated dataclass out. No other module knows OmegaConf."""

import logging
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smet_train.config import messages
from smet_train.config.fields import leaves
from smet_train.config.identity import default_run_folder, fresh_folder, short_hash
from smet_train.config.locate import config_folder
from smet_train.config.schema import Config
from smet_train.config.validate import check_range, validate
from smet_train.errors import ConfigError, SmetError

log = logging.getLogger(__name__)

MAIN_CONFIG = "train"
_VERSION_BASE = "1.3"

RunJob = Callable[[Config, Path], int]
OwnSettings = TypeVar("OwnSettings")


def compose(overrides: list[str], *, config_name: str = MAIN_CONFIG, config_dir: Path | None = None) -> Config:
    """The validated configuration that ``smet-train`` with these overrides trains.

    Args:
        config_name: the YAML file to start from, without ``.yaml``.
        config_dir: a folder with further YAML files, searched after the shipped ones.

    Raises:
        ConfigError: for an unknown key or option, a wrong type, a value out of range, or settings at odds.
    """
    with _translated():
        config = _to_config(_compose(overrides, config_name, config_dir))
    validate(config)
    return config


def compose_own(prefix: str, overrides: list[str], defaults: OwnSettings) -> OwnSettings:
    """The settings of a command of its own: ``defaults`` with ``<prefix>KEY=VALUE``, checked against their ranges.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a value out of range.
    """
    known = {leaf.key: leaf for leaf in leaves(defaults, prefix)}
    for override in overrides:
        if override.partition("=")[0] not in known:
            raise ConfigError(f"unknown key {override.partition('=')[0]}; there is {', '.join(known)}")
    with _translated():
        given = OmegaConf.from_dotlist([override.removeprefix(prefix) for override in overrides])
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(defaults), given))
    for leaf in known.values():
        check_range(leaf, getattr(settings, leaf.key.removeprefix(prefix)))
    return cast(OwnSettings, settings)


def launch(run: RunJob) -> int:
    """Run what the command line of this process asks for; returns the exit status.

    A single run is composed and validated before Hydra makes its folder, a sweep before its first job starts.

    Args:
        run: called with the configuration and the run folder; returns the exit status.

    Raises:
        ConfigError: for a mistake on the command line or in a YAML file.
        SmetError: from ``run``, or from a sweep with failed jobs.
    """
    _register()
    job = _Job(run)
    with _translated(), _errors_raised():
        arguments = get_args_parser().parse_args()
        _check(arguments)
        hydra.main(version_base=_VERSION_BASE, config_path=str(config_folder()), config_name=MAIN_CONFIG)(job)()
    if job.error is not None:
        raise job.error
    return job.status


class _Job:
    """What Hydra calls for a run; keeps what came of it, because Hydra would print an error's overrides too."""

    def __init__(self, run: RunJob) -> None:
        self.status = 0
        self.error: SmetError | None = None
        self._run = run

    def __call__(self, settings: DictConfig) -> None:
        try:
            config = _to_config(settings)
            validate(config)
            self.status = self._run(config, Path(HydraConfig.get().runtime.output_dir))
        except SmetError as error:
            log.info("ended by an error: %s", error)
            self.error = error


def _to_config(settings: DictConfig) -> Config:
    # By way of plain values: a key that an override added with a plus sign would otherwise be let through.
    plain = OmegaConf.to_container(settings, resolve=True, enum_to_str=True)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(config, Config)
    return config


def _compose(overrides: list[str], config_name: str, config_dir: Path | None) -> DictConfig:
    with _initialized():
        return hydra.compose(config_name, _searching(overrides, config_dir))


@contextmanager
def _initialized() -> Iterator[None]:
    _register()
    with hydra.initialize_config_dir(str(config_folder()), version_base=_VERSION_BASE):
        yield


def _searching(overrides: list[str], config_dir: Path | None) -> list[str]:
    return overrides if config_dir is None else [*overrides, f"hydra.searchpath=['file://{config_dir.absolute()}']"]


def _check(arguments: Namespace) -> None:
    """Refuse what Hydra would answer with a traceback, and compose everything before anything is made."""
    if arguments.config_path is not None:
        raise ConfigError("--config-path would hide the shipped settings; write --config-dir to add a folder to them")
    shows = arguments.cfg is not None
    if shows + arguments.multirun + arguments.run + arguments.shell_completion + (arguments.info is not None) > 1:
        raise ConfigError(
            "--multirun, --run, --cfg, --info and --shell-completion exclude each other; keep one of them"
        )
    if arguments.resolve and not shows:
        raise ConfigError("--resolve goes with --cfg; write --cfg job --resolve")
    if shows or arguments.shell_completion or arguments.info is not None or arguments.hydra_help:
        return
    name = arguments.config_name or MAIN_CONFIG
    folder = None if arguments.config_dir is None else Path(arguments.config_dir)
    if arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides:
        _check_sweep(arguments.overrides, name, folder)
    else:
        compose(arguments.overrides, config_name=name, config_dir=folder)


def _check_sweep(overrides: list[str], name: str, folder: Path | None) -> None:
    """Compose every swept value once, the other ones at their first value: names and types, not ranges.

    A value out of range fails its own job and no other; a typo would fail all of them. Sweeps over ranges and
    distributions have no list of values; the first jobs show what is wrong with them.
    """
    with _initialized():
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        choices = []
        for override in parser.parse_overrides(_searching(overrides, folder)):
            if not override.is_sweep_override():
                choices.append([str(override.input_line)])
            elif override.is_discrete_sweep():
                choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        first = [values[0] for values in choices]
        hydra.compose(name, first)
        for place, values in enumerate(choices):
            for value in values[1:]:
                hydra.compose(name, [*first[:place], value, *first[place + 1 :]])


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the errors of Hydra, OmegaConf and YAML into ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        return messages.unreadable_override(error.override)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return messages.unknown_option(group, name, error.options)
    text = str(error)
    several = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text)
    if several:
        return messages.sweep_without_flag(several[1])
    if error.__cause__ is not None:
        text = f"{error.__cause__}\n{text}"
    return messages.explain(text)


@contextmanager
def _errors_raised() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them; the environment is as before afterwards."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _register() -> None:
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("smet.run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("smet.sweep_folder", _sweep_folder, replace=True)


def _run_folder(*, _root_: DictConfig) -> str:
    settings = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    config = _to_config(settings)
    return str(default_run_folder(config, _name(_root_, config.method)))


def _sweep_folder(*, _root_: DictConfig) -> str:
    """``multirun/<name>-<hash of the overrides>``, a fresh one under ``checkpoint.resume=never``."""
    overrides = sorted(map(str, _root_.hydra.overrides.task))
    folder = Path("multirun") / f"{_name(_root_, 'sweep')}-{short_hash(overrides)}"
    fresh = OmegaConf.select(_root_, "checkpoint.resume") == "never"
    return str(fresh_folder(folder.absolute()) if fresh else folder)


def _name(root: DictConfig, otherwise: str) -> str:
    """The experiment's name, as far as a folder may be called by it."""
    experiment = root.hydra.runtime.choices.get("experiment")
    return re.sub(r"[^\w.,=+-]+", "_", str(experiment)) if experiment else otherwise
