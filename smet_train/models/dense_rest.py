"""What of a model's blocks stays dense beside its sparse layers, and what the blocks' density is with it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from smet_train.errors import ConfigError
from smet_train.sparse.convert import linear_layer_names
from smet_train.sparse.ledger import sparse_layers

_LISTED = 6


@dataclass(frozen=True, slots=True)
class Blocks:
    """The matrices of a model but its embeddings and its output layer: what a density is asked of.

    Attributes:
        density: active weights over all, those of dense matrices included.
        sparse_density: the same of the sparse layers alone.
        dense: the dense ones as text, such as ``*.experts.down_proj (2 of 4x32x48)``; numbers of blocks as ``*``.
    """

    density: float
    sparse_density: float
    dense: tuple[str, ...]

    @property
    def text(self) -> str:
        """In words, for a model that has dense matrices in its blocks."""
        more = f" and {len(self.dense) - _LISTED} more" if len(self.dense) > _LISTED else ""
        return (
            f"{', '.join(self.dense[:_LISTED])}{more} stay dense, so that the density of all matrices of the blocks "
            f"is {self.density:.4g}, not {self.sparse_density:.4g}"
        )


def blocks_of(model: nn.Module, targets: Mapping[str, float] | None = None) -> Blocks | None:
    """The blocks of a model that has sparse layers; None if it has none.

    Args:
        targets: density that each sparse layer is pruned to, by name; None = what they have.
    """
    layers = sparse_layers(model)
    if not layers:
        return None
    sites = sum(layer.layout.weights for layer in layers.values())
    active = sum(
        round(targets[name] * layer.layout.weights) if targets else layer.layout.n_values
        for name, layer in layers.items()
    )
    sizes = dense_matrices(model)
    kinds: dict[tuple[str, str], int] = {}
    for name, shape in sizes.items():
        kind = re.sub(r"\.\d+(?=\.|$)", ".*", name), "x".join(map(str, shape))
        kinds[kind] = kinds.get(kind, 0) + 1
    dense = sum(nn.Parameter.numel(model.get_parameter(name)) for name in sizes)
    return Blocks(
        density=(active + dense) / (sites + dense),
        sparse_density=active / sites,
        dense=tuple(f"{name} ({count} of {shape})" for (name, shape), count in kinds.items()),
    )


def dense_matrices(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of two dimensions or more, by name, a shared one once, without those of sparse layers,
    embeddings and the output layer."""
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    apart = [*sparse_layers(model).values(), output]
    apart += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    known = {id(parameter) for module in apart if module is not None for parameter in module.parameters()}
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in known
    }


def refuse_other_parameters(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """See that no pattern of the setting ``key`` names parameters that belong to no linear layer, without naming a
    linear layer: of these, more can be said than that nothing matches.

    Raises:
        ConfigError: naming the first such parameter and its shape.
    """
    names = linear_layer_names(model)
    linear = {f"{name}.weight" for name in names}
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        for name, parameter in model.named_parameters():
            parts = name.split(".")
            held_by = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
            if name in linear or parameter.dim() < 2 or not any(fnmatchcase(path, pattern) for path in held_by):
                continue
            shape = "x".join(map(str, parameter.shape))
            raise ConfigError(
                f"{key}: the pattern '{pattern}' names {name}, one parameter of {shape}, and only the weights of "
                "linear layers can be sparse: it stays dense, as do all experts of a block in one parameter; take the "
                "pattern out"
            )
