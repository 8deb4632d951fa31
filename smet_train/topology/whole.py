"""A layer that is split over processes, made whole for a topology update: what is chosen is what one process would
choose."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import Gather, is_sharded, local, part_of


@contextmanager
def made_whole(layer: SparseLinear, optimizer: torch.optim.Optimizer, gather: Gather) -> Iterator[None]:
    """Inside, ``layer.values``, their optimizer state and the index are whole in every process; afterwards each has its
    part of what has become of them. Nothing happens to a layer that is whole."""
    if not is_sharded(layer.values):
        yield
        return
    split, state, split_index = layer.values, optimizer.state[layer.values], layer.packed_index
    values = nn.Parameter(gather(local(split.detach()), split))
    optimizer.state[values] = {key: gather(held, split) if _per_slot(held) else held for key, held in state.items()}
    index = nn.Parameter(gather(local(split_index), split_index), requires_grad=False)
    layer.values, layer.packed_index = values, index
    taking_place = getattr(optimizer, "taking_place", None)
    try:
        with nullcontext() if taking_place is None else taking_place(values, split):
            yield
    finally:
        layer.values, layer.packed_index = split, split_index
        layer.topology_changed()
        moved = optimizer.state.pop(values)
    with torch.no_grad():
        local(split_index).copy_(part_of(index, split_index))
        local(split).copy_(part_of(values.detach(), split))
        for key, held in moved.items():
            if not _per_slot(held):
                state[key] = held
            elif held.dtype == state[key].dtype:
                state[key].copy_(part_of(held, split))
            else:  # ages that have become wider
                state[key] = part_of(held, split).clone()
    split.grad = None


def whole_index(layer: SparseLinear, gather: Gather) -> Tensor:
    """The active sites of ``layer``, ascending; all processes take part if they are split over them."""
    return sites(layer.packed_index, layer.layout, gather)


def sites(packed: Tensor, layout: Layout, gather: Gather) -> Tensor:
    """The active sites of ``layout`` in ``packed``; all processes take part if it is split over them.

    Raises:
        LayoutError: if what is packed cannot be an index of ``layout``.
    """
    return unpack(gather(local(packed), packed), layout)


def _per_slot(held: Any) -> bool:
    return isinstance(held, Tensor) and held.dim() > 0
