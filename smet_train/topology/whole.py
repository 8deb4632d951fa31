"""A layer whose slots are split over processes, made whole for a topology update: what is chosen is what one process
would choose."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import Gather, is_sharded, local, part_of


@contextmanager
def made_whole(layer: SparseLinear, optimizer: torch.optim.Optimizer, gather: Gather) -> Iterator[None]:
    """Inside, ``layer.values`` and their optimizer state are those of all slots, in every process; afterwards each
    process has its slots of what has become of them. Nothing happens to a layer that is whole."""
    if not is_sharded(layer.values):
        yield
        return
    split, state = layer.values, optimizer.state[layer.values]
    values = nn.Parameter(gather(local(split.detach()), split))
    optimizer.state[values] = {key: gather(held, split) if _per_slot(held) else held for key, held in state.items()}
    layer.values = values
    try:
        yield
    finally:
        layer.values = split
        moved = optimizer.state.pop(values)
    with torch.no_grad():
        local(split).copy_(part_of(values.detach(), split))
        for key, held in moved.items():
            if _per_slot(held):
                state[key].copy_(part_of(held, split))
            else:
                state[key] = held
    split.grad = None


def _per_slot(held: Any) -> bool:
    return isinstance(held, Tensor) and held.dim() > 0
