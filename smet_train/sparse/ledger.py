"""Bytes and parameters by kind, beside what the same model would hold if every sparse layer were dense."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import local


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One kind of tensor: what is held now, and what a dense model under the same optimizer and precision holds."""

    kind: str
    bytes: int
    dense_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The row as a memory event has it."""
        return asdict(self)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor.detach()).nbytes for tensor in tensors)


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """All sparse layers of ``model`` by name, in model order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``model``, tied ones once, without indices: an index that is split over processes is held as a
    parameter of whole numbers (:meth:`SparseLinear.index_as_parameter`)."""
    return [parameter for parameter in model.parameters() if parameter.is_floating_point()]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(active, dense-equivalent) number of parameters; a tied weight counts once."""
    active = sum(parameter.numel() for parameter in trained_parameters(model))
    extra = sum(layer.layout.weights - layer.layout.n_values for layer in sparse_layers(model).values())
    return active, active + extra


def _state_bytes(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, *, ages: bool) -> int:
    """Bytes of the per-slot optimizer state: of its ages, or of its moments, which is all the rest."""
    states = ((key, value) for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor))
    return _bytes(value for key, value in states if (key == "age") is ages and value.dim() > 0)


def _dense_bytes(layer: SparseLinear) -> int:
    """Bytes of the values that this process would hold if ``layer`` were dense."""
    return _bytes([layer.values]) * layer.layout.weights // layer.layout.n_values


def measure(model: nn.Module, optimizer: torch.optim.Optimizer, *, fused: bool = False) -> list[LedgerRow]:
    """Bytes held by the model and its optimizer, from the tensors themselves; in this process, where they are split.

    A gradient is counted as large as its parameter, whether or not it exists at this moment; with ``fused``, where
    each lives until its parameter is updated, the largest alone. Call it after the optimizer has made its state
    (``SmetAdamW`` makes it when it is built).
    """
    layers = sparse_layers(model).values()
    values = [layer.values for layer in layers]
    sparse_ids = {id(parameter) for parameter in values}
    rest = [parameter for parameter in trained_parameters(model) if id(parameter) not in sparse_ids]
    dense_values = sum(_dense_bytes(layer) for layer in layers)
    moments = [_state_bytes(optimizer, parameter, ages=False) for parameter in values]
    dense_moments = sum(
        round(held / layer.layout.n_values * layer.layout.weights) for held, layer in zip(moments, layers, strict=True)
    )
    ages = sum(_state_bytes(optimizer, parameter, ages=True) for parameter in values)
    rest_bytes = _bytes(rest)
    rest_moments = sum(_state_bytes(optimizer, parameter, ages=False) for parameter in rest)
    gradients, rest_gradients = (_bytes(values), dense_values), rest_bytes
    if fused:
        largest_dense = max((_dense_bytes(layer) for layer in layers), default=0)
        gradients = max((_bytes([value]) for value in values), default=0), largest_dense
        rest_gradients = max((_bytes([parameter]) for parameter in rest), default=0)
    rows = [
        LedgerRow("values", _bytes(values), dense_values),
        LedgerRow("gradients", *gradients),
        LedgerRow("moments", sum(moments), dense_moments),
        LedgerRow("ages", ages, 0),
        LedgerRow("index", _bytes(layer.packed_index for layer in layers), 0),
        LedgerRow("dense rest: parameters", rest_bytes, rest_bytes),
        LedgerRow("dense rest: gradients", rest_gradients, rest_gradients),
        LedgerRow("dense rest: moments", rest_moments, rest_moments),
    ]
    return [row for row in rows if row.bytes or row.dense_bytes]
