"""What a search searches, from overrides as they are typed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from smet_train.errors import ConfigError


@dataclass(frozen=True)
class Space:
    """The overrides in order: as text if they are the same in all trials, as Optuna's distribution if searched."""

    overrides: dict[str, Any]

    @property
    def searched(self) -> dict[str, Any]:
        """Optuna's distributions by setting."""
        return {key: value for key, value in self.overrides.items() if not isinstance(value, str)}


def read_space(typed: Sequence[str], config_loader: Any) -> Space:
    """The space of the overrides; of two with the same key the later one counts.

    ``a,b``, ``choice(…)``, ``range(…)`` and ``glob(…)`` are choices; ``interval(…)`` draws numbers between two,
    ``int(interval(…))`` whole ones, and ``tag(log, …)`` around one of them draws the logarithm.

    Raises:
        ConfigError: if none of them gives several values.
    """
    overrides = {}
    for override in OverridesParser.create(config_loader).parse_overrides(list(typed)):
        key = override.get_key_element()
        sweeps = override.is_sweep_override()
        overrides[key] = _distribution(override) if sweeps else override.get_value_element_as_str()
    space = Space(overrides)
    if not space.searched:
        raise ConfigError(
            "hydra/sweeper=optuna has nothing to search; write for instance sparsity.density=0.05,0.1 or "
            '"optimizer.lr=tag(log, interval(1e-4, 1e-2))"'
        )
    return space


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if override.is_discrete_sweep():
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    low, high = interval.start, interval.end
    assert low is not None
    assert high is not None
    logarithmic = "log" in interval.tags
    try:
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=logarithmic)
        return FloatDistribution(low, high, log=logarithmic)
    except ValueError as error:
        raise ConfigError(f"{override.input_line}: {error}") from error


def overrides_of(space: Space, params: Mapping[str, Any]) -> list[str]:
    """The overrides of the trial with these values, numbers to four digits: they name folders."""
    return [f"{key}={_text(params.get(key, value))}" for key, value in space.overrides.items()]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
