"""Parameter groups by role, never by number of dimensions: a sparse matrix's values are one-dimensional too."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from smet_train.sparse.ledger import sparse_layers, trained_parameters


def lr_density_scale(rule: str, density: float) -> float:
    """Factor on the learning rate of a sparse layer: 1, density^-1/2 (as SMET is reported) or 1/density (its scripts).

    Raises:
        KeyError: if ``rule`` is none of none, sqrt, linear.
    """
    return {"none": 1.0, "sqrt": density**-0.5, "linear": 1.0 / density}[rule]


def parameter_groups(
    model: nn.Module,
    densities: Mapping[str, float],
    *,
    lr_density_rule: str,
    weight_decay: float,
    topology_moves: bool,
    embedding_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for ``SmetAdamW``: one a density for the sparse values, one for embeddings and the output layer, one for
    the other dense matrices, one without decay.

    Matrices and sparse values decay; norms and biases do not, and keep moments in fp32.

    Args:
        densities: target density of each sparse layer, by name; decides its learning rate scale.
        topology_moves: whether the sparse values are ever regrown.
        embedding_lr_scale: factor on the learning rate of embeddings and the output layer, whose best rate does not
            fall with the width as that of the layers between them does (Yang et al., arXiv 2203.03466, table 3).
    """
    by_density: dict[float, list[nn.Parameter]] = {}
    for name, layer in sparse_layers(model).items():
        by_density.setdefault(densities[name], []).append(layer.values)
    groups: list[dict[str, Any]] = [
        {
            "role": "sparse",
            "params": values,
            "weight_decay": weight_decay,
            "lr_scale": lr_density_scale(lr_density_rule, density),
            "topology_moves": topology_moves,
        }
        for density, values in by_density.items()
    ]
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [parameter for parameter in trained_parameters(model) if id(parameter) not in taken]
    outer = embedding_parameters(model)
    embeddings = [parameter for parameter in rest if id(parameter) in outer]
    matrices = [parameter for parameter in rest if parameter.dim() >= 2 and id(parameter) not in outer]
    vectors = [parameter for parameter in rest if parameter.dim() < 2]
    groups.append(
        {"role": "embedding", "params": embeddings, "weight_decay": weight_decay, "lr_scale": embedding_lr_scale}
    )
    groups.append({"role": "dense", "params": matrices, "weight_decay": weight_decay})
    groups.append({"role": "no_decay", "params": vectors, "weight_decay": 0.0, "moments": "fp32"})
    return [group for group in groups if group["params"]]


def peak_rates(groups: Iterable[Mapping[str, Any]], lr: float) -> dict[str, list[float]]:
    """The learning rates that ``lr`` comes to under the groups' scales: by role, ascending, each once."""
    found: dict[str, set[float]] = {}
    for group in groups:
        found.setdefault(group["role"], set()).add(lr * group["lr_scale"])
    return {role: sorted(rates) for role, rates in found.items()}


def embedding_parameters(model: nn.Module) -> set[int]:
    """Identities of the matrices that are indexed by token or position, and of the output layer's of a transformers
    model."""
    modules: list[nn.Embedding | nn.Linear] = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(output, nn.Linear):
        modules.append(output)
    return {id(module.weight) for module in modules}
