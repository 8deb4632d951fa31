"""Tensors of which each process of a run holds a part of the slots: torch's DTensors, and what lies beside them.

A parameter that ``fully_shard`` has split is a DTensor outside of the forward pass. What is held per slot beside it, as
moments and ages are, is a plain tensor: of the slots that this process holds. Everything here gives back what it is
given where nothing is split, and imports nothing for it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The whole of the first, of which each process holds the slots that it holds of the second.
Gather = Callable[[Tensor, Tensor], Tensor]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor; there is no need to import them to know."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The slots of ``tensor`` that this process holds, sharing its memory."""
    if not is_sharded(tensor):
        return tensor
    held: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return held


def whole_shape(part: Tensor, like: Tensor) -> torch.Size:
    """The shape of the whole of which this process holds ``part``, split as ``like`` is."""
    return torch.Size([*like.shape[:1], *part.shape[1:]]) if is_sharded(like) else part.shape


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which this process holds ``part``, split as ``like`` is; all processes take part."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = _split(like)
    shape = whole_shape(part, like)
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=strides).full_tensor()


def part_of(everything: Tensor, like: Tensor) -> Tensor:
    """The slots of ``everything`` that this process holds of ``like``."""
    if not is_sharded(like):
        return everything
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = _split(like)
    return distribute_tensor(everything, mesh, placements, src_data_rank=None).to_local()


def _split(like: Any) -> tuple[Any, Any]:
    """Over which processes the DTensor ``like`` is split, and how."""
    return like.device_mesh, like.placements
