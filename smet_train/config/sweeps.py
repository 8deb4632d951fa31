"""What is checked of a sweep before its first job starts."""

from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from hydra_plugins.smet_launcher._settings import LAUNCHERS
from smet_train.config.compose import hydra_compose, initialized, searching, to_config
from smet_train.errors import ConfigError

_OUR_LAUNCHERS = "hydra_plugins.smet_launcher."
_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def check_sweep(overrides: list[str], name: str, folder: Path | None) -> DictConfig:
    """Compose every swept value once, the other ones at their first value: names and types, not ranges.

    A value out of range fails its own job and no other; a typo would fail all of them. An interval has no list of
    values; the first jobs show what is wrong with them.

    Raises:
        ConfigError: for those, for a launcher that is not ours, and for an interval in a grid.
    """
    with initialized():
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        typed = parser.parse_overrides(searching(overrides, folder))
        settings = hydra_compose(name, [values[0] for values in map(_values, typed) if values])
        sweeper, launcher = settings.hydra.sweeper, settings.hydra.launcher
        if not str(launcher.get("_target_")).startswith(_OUR_LAUNCHERS):
            raise ConfigError(
                f"hydra/launcher={settings.hydra.runtime.choices['hydra/launcher']} would not keep jobs apart; choose "
                f"one of {', '.join(LAUNCHERS)}"
            )
        searched = parser.parse_overrides([f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()])
        everything = [*searched, *typed]
        if sweeper.get("_target_") == _GRID:
            _refuse_ranges(everything)
        choices = [values for values in map(_values, everything) if values]
        first = [values[0] for values in choices]
        to_config(hydra_compose(name, first))
        for place, values in enumerate(choices):
            for value in values[1:]:
                to_config(hydra_compose(name, [*first[:place], value, *first[place + 1 :]]))
    return settings


def _values(override: Override) -> list[str]:
    """The override with each value that it gives; none of an interval, which has no list of them."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _refuse_ranges(overrides: list[Override]) -> None:
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line} is no list of values; write some, such as 0.001,0.002, or have it searched by "
                "hydra/sweeper=optuna"
            )
