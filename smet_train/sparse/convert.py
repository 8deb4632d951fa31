"""Replace chosen linear layers of any model by sparse ones, chosen by glob patterns on their names."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from smet_train.errors import ConfigError, LayoutError
from smet_train.layer_names import chosen_names
from smet_train.sparse.allocation import Shapes, uniform
from smet_train.sparse.dense import gather_values
from smet_train.sparse.layout import Layout
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.replaceable import Layers, attributes_of_its_own, is_conv1d, linear_layer_names
from smet_train.sparse.sampling import first_index, stream_key
from smet_train.sparse.torch_transformer import leave_fast_paths

__all__ = [
    "ChooseSites",
    "choose_layers",
    "default_layers",
    "dense_copy",
    "is_conv1d",
    "linear_layer_names",
    "sparsify",
    "weight_OI",
]

_TAKEN = (
    "training",
    *(f"_forward{pre}_hooks{kind}" for pre in ("", "_pre") for kind in ("", "_with_kwargs")),
    "_forward_hooks_always_called",
    *(f"_backward{pre}_hooks" for pre in ("", "_pre")),
    "_is_full_backward_hook",
)

ChooseSites = Callable[[str, Layout, Tensor], Tensor]


def weight_OI(module: nn.Module) -> Tensor:
    """The weight of a linear layer as (out, in), sharing its memory."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_conv1d(module) else weight


def default_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers to make sparse where the user names none, in model order.

    All but the output layer, layers that share their weight, frozen ones, those of adapters (LoRA), and those for which
    no sparse layer can stand in. The output layer is what ``get_output_embeddings`` says; in a model without it the
    last linear layer that is outside of blocks which repeat.
    """
    return Layers(model).default()[0]


def _shape(dense_OI: Tensor) -> tuple[int, int]:
    return dense_OI.shape[0], dense_OI.shape[1]


def choose_layers(model: nn.Module, include: Iterable[str], exclude: Iterable[str] = ()) -> list[str]:
    """Names of the linear layers that match a pattern of ``include`` and none of ``exclude``, in model order.

    Patterns are globs on the whole dotted name: ``*.q_proj``, ``model.layers.0.*``.

    Raises:
        ConfigError: if a pattern matches no linear layer, if nothing is left, or if a chosen layer can't be made
            sparse: its weight is shared, read by another module or made from other tensors, or it is a subclass that
            computes or holds something else.
    """
    layers = Layers(model)
    chosen = chosen_names(layers.names, include, exclude)
    for name in sorted(chosen):
        reason = layers.unfit(name)
        if reason is not None:
            raise ConfigError(f"sparsity.include: layer {name} can't be made sparse, because {reason}")
    return chosen


def named_layout(name: str, shape: tuple[int, int], density: float, block: int = 1) -> Layout:
    """The layout of layer ``name`` of shape (O, I).

    Raises:
        LayoutError: naming the layer, if its density leaves it no active value.
    """
    try:
        return Layout.from_density(*shape, density, block)
    except LayoutError as error:
        raise LayoutError(f"layer {name} at density {density:g}: {error}") from error


@torch.no_grad()
def sparse_from_dense(
    dense: nn.Module, layout: Layout, index_K: Tensor, *, backend: str = "densify", value_scale: float = 1.0
) -> SparseLinear:
    """A :class:`SparseLinear` with the sites ``index_K``, holding ``dense``'s weights at them times ``value_scale``.

    It takes over what else is known of ``dense``: its hooks (the handles go on to work), attributes of its own, whether
    it trains, and what of it is frozen.
    """
    values = gather_values(weight_OI(dense), index_K, layout) * value_scale
    bias = dense.bias.detach().clone() if isinstance(dense.bias, Tensor) else None
    sparse = SparseLinear(layout, index_K, values, bias, backend)
    sparse.values.requires_grad_(weight_OI(dense).requires_grad)
    if sparse.bias is not None and isinstance(dense.bias, Tensor):
        sparse.bias.requires_grad_(dense.bias.requires_grad)
    taken = {key: getattr(dense, key) for key in (*_TAKEN, *attributes_of_its_own(dense))}
    sparse.replaced = type(dense)
    vars(sparse).update({key: held for key, held in taken.items() if not hasattr(type(sparse), key) or key in _TAKEN})
    return sparse


@torch.no_grad()
def dense_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose sparse layers are dense again, zero at inactive sites; it computes what ``model`` does.

    It is what to save for others to read: ``dense_copy(model).save_pretrained(folder)``.
    """
    dense_model = copy.deepcopy(model)
    for name, layer in sparse_layers(dense_model).items():
        parent_name, _, child_name = name.rpartition(".")
        setattr(dense_model.get_submodule(parent_name), child_name, _dense_from_sparse(layer))
    return dense_model


def _dense_from_sparse(layer: SparseLinear) -> nn.Module:
    """A layer of the class that ``layer`` has taken the place of, if that is ``Conv1D``; else ``nn.Linear``."""
    rows, columns = layer.out_features, layer.in_features
    dense: nn.Module
    if layer.replaced is not None and layer.replaced.__name__ == "Conv1D":
        dense = layer.replaced(rows, columns)
    else:
        dense = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
    weight = layer.to_dense()
    dense.weight = nn.Parameter(weight.t().contiguous() if is_conv1d(dense) else weight, layer.values.requires_grad)
    if layer.bias is not None:
        dense.bias = layer.bias
    vars(dense).update({key: getattr(layer, key) for key in _TAKEN})
    return dense


def sparsify(
    model: nn.Module,
    include: Iterable[str],
    exclude: Iterable[str] = (),
    *,
    density: float,
    seed: int = 0,
    block: int = 1,
    backend: str | Callable[[str, Layout], str] = "densify",
    init: str = "active",
    allocate: Callable[[Shapes, float], dict[str, float]] = uniform,
    choose_sites: ChooseSites | None = None,
) -> dict[str, SparseLinear]:
    """Replace the chosen layers in place, one at a time, so that never more than one exists both dense and sparse.

    Args:
        include, exclude: glob patterns, see :func:`choose_layers`.
        density: target fraction of active values, in (0, 1].
        block: edge of the blocks that are active or not together; 1 = single values.
        seed: random first sites of a layer are a function of (seed, layer name).
        backend: name of the compute backend, or what tells it for a layer's name and layout.
        init: what the first values are scaled for. ``active`` multiplies the dense initial values by density^-1/2, so
            that a row's output keeps the variance it has with all I inputs; ``dense`` keeps them as they are.
        allocate: density of each layer from ((O, I) of the layers by name, ``density``).
        choose_sites: the first sites, ascending, of a layer's name, its layout, and its weight (O, I); None = random.

    Returns:
        The new layers by name, in model order.

    Raises:
        ConfigError: see :func:`choose_layers`.
        LayoutError: if a layer is so small that its density leaves it no active value.
    """

    def random_sites(name: str, layout: Layout, weight: Tensor) -> Tensor:
        return first_index(layout, stream_key(seed, name, 0, "first sites"), weight.device)

    choose = choose_sites or random_sites
    names = choose_layers(model, include, exclude)
    shapes = {name: _shape(weight_OI(model.get_submodule(name))) for name in names}
    densities = allocate(shapes, density)
    layers: dict[str, SparseLinear] = {}
    for name, layer_density in densities.items():
        parent_name, _, child_name = name.rpartition(".")
        layout = named_layout(name, shapes[name], layer_density, block)
        dense = model.get_submodule(name)
        layers[name] = sparse_from_dense(
            dense,
            layout,
            choose(name, layout, weight_OI(dense)),
            backend=backend if isinstance(backend, str) else backend(name, layout),
            value_scale=layer_density**-0.5 if init == "active" else 1.0,
        )
        setattr(model.get_submodule(parent_name), child_name, layers[name])
    leave_fast_paths(model)
    return layers
