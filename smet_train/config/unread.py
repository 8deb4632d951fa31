"""Settings that are given but have no effect beside the others: no mistake, since commands and experiments share
settings over methods, but something to say."""

from collections.abc import Callable

from smet_train import ranks
from smet_train.config.fields import leaves, matches, spell, value_at
from smet_train.config.schema import Config, DropSchedule, Family, Grow

_REGROWTH = ("optimizer.regrow_moments", "optimizer.regrow_warmup_steps")
_DROP_FRACTIONS = ("topology.drop_fraction", "topology.final_drop_fraction", "topology.drop_schedule")

# What a config.json of transformers says in place of these.
IN_CONFIG_FILE = (
    "model.hidden_size",
    "model.intermediate_size",
    "model.layers",
    "model.heads",
    "model.kv_heads",
    "model.dropout",
    "model.tie_embeddings",
    "model.initializer_range",
)

# Where something holds: keys and sections that nothing reads then, and why. The first that names a key is told.
RULES: list[tuple[Callable[[Config], bool], tuple[str, ...], str]] = [
    (
        lambda config: not config.sparsity.enabled,
        ("sparsity.", "topology.", *_REGROWTH, "optimizer.lr_density_rule"),
        "every layer is dense",
    ),
    (
        lambda config: config.model.family is Family.auto,
        IN_CONFIG_FILE,
        "the model is that of model.config_file",
    ),
    (
        lambda config: config.model.init_from is not None,
        ("sparsity.init", "model.initializer_range"),
        "values begin as those of model.init_from",
    ),
    (lambda config: not config.topology.enabled, ("topology.", *_REGROWTH), "the topology never moves"),
    (lambda config: config.topology.grow is Grow.nothing, (*_DROP_FRACTIONS, *_REGROWTH), "nothing is regrown"),
    (
        lambda config: config.topology.drop_schedule is DropSchedule.constant,
        ("topology.final_drop_fraction",),
        "the drop fraction is constant",
    ),
    (
        lambda config: config.train.processes == 1 and ranks.world_size() == 1,
        ("train.parallel",),
        "one process holds everything",
    ),
]
# What presets write to switch something off.
SWITCHES = ("sparsity.enabled", "topology.enabled", "optimizer.regrow_warmup_steps", "optimizer.lr_density_rule")


def without_effect(config: Config) -> dict[str, list[str]]:
    """Settings that differ from their defaults and that nothing reads, ``KEY=VALUE``, by the reason."""
    told: dict[str, list[str]] = {}
    for leaf in leaves(Config()):
        value = value_at(config, leaf.key)
        if leaf.key in SWITCHES or value == leaf.default:
            continue
        for holds, keys, reason in RULES:
            if matches(leaf.key, keys) and holds(config):
                told.setdefault(reason, []).append(f"{leaf.key}={spell(value)}")
                break
    return told
