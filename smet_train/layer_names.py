"""Names of a model's linear layers, and glob patterns on them; without torch, so that a typo is answered at once."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from smet_train.errors import ConfigError

# The attention and MLP projections of each architecture that is built by name.
PROJECTIONS = {
    "llama": (
        *(f"*.self_attn.{name}_proj" for name in "qkvo"),
        *(f"*.mlp.{name}_proj" for name in ("gate", "up", "down")),
    ),
    "gpt2": ("*.attn.c_attn", "*.attn.c_proj", "*.mlp.c_fc", "*.mlp.c_proj"),
}
_BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h"}
_OUTPUT = "lm_head"


def names_of(family: str, layers: int) -> list[str] | None:
    """All linear layers of a model of ``layers`` blocks in its order; None where only the built model can tell."""
    if family not in PROJECTIONS:
        return None
    blocks = [f"{_BLOCKS[family]}.{number}" for number in range(layers)]
    return [*(block + projection[1:] for block in blocks for projection in PROJECTIONS[family]), _OUTPUT]


def matching(names: Sequence[str], patterns: Iterable[str], key: str) -> set[str]:
    """The ``names`` that a glob of ``patterns`` matches; ``key`` is the setting that holds them.

    Raises:
        ConfigError: if a pattern matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            near = get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ConfigError(
                f"{key}: the pattern '{pattern}' matches none of the {len(names)} linear layers; "
                f"layers are named like {', '.join(near) or '(there are none)'}"
            )
        chosen |= matched
    return chosen


def chosen_names(names: Sequence[str], include: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """The names that match a pattern of ``include`` and none of ``exclude``, in their order.

    Raises:
        ConfigError: if a pattern matches none, or if nothing is left.
    """
    chosen = matching(names, include, "sparsity.include") - matching(names, exclude, "sparsity.exclude")
    if not chosen:
        raise ConfigError(
            "sparsity.exclude leaves no layer of sparsity.include; take patterns out of sparsity.exclude or choose "
            "method=dense"
        )
    return [name for name in names if name in chosen]


def check_density_patterns(names: Sequence[str], patterns: Iterable[str]) -> None:
    """Raises ConfigError if a pattern of ``sparsity.densities`` matches none of the sparse layers ``names``."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"sparsity.densities: the pattern '{pattern}' matches none of the {len(names)} sparse layers; they "
                f"are named like {names[0]}"
            )
