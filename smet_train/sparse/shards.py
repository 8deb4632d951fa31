"""Tensors of which each process of a run holds a part of the slots: torch's DTensors, and what lies beside them.

A parameter that ``fully_shard`` has split is a DTensor outside of the forward pass. What is held per slot beside it, as
moments and ages are, is a plain tensor: of the slots that this process holds. Everything here gives back what it is
given where nothing is split, and imports nothing for it.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.distributed as dist
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


def as_split(part: Tensor, like: Tensor, shape: torch.Size | None = None) -> Tensor:
    """The whole of which this process holds ``part``, split as ``like`` is: a DTensor that shares its memory.

    Args:
        shape: of the whole; None = of as many slots as ``like``.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = _split(like)
    shape = shape or whole_shape(part, like)
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=strides)


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which this process holds ``part``, split as ``like`` is; all processes take part."""
    if not is_sharded(like):
        return part
    if part.dtype == torch.int16:  # which neither gloo nor NCCL knows: as two bytes behind the first dimension
        return whole(part.unsqueeze(-1).view(torch.uint8), like).view(torch.int16).squeeze(-1)
    # Not by DTensor.full_tensor, whose operation has a long name: gloo's threads write down without a lock which one
    # they have finished last, and such a name is memory of its own, that two can then free: the process dies or hangs.
    mesh, _ = _split(like)
    n = like.shape[0]
    length = -(-n // mesh.size())
    padding = part.new_zeros(length - part.shape[0], *part.shape[1:])
    everything = part.new_empty(mesh.size() * length, *part.shape[1:])
    dist.all_gather(list(everything.chunk(mesh.size())), torch.cat([part, padding]), group=mesh.get_group())
    return everything[:n]


def held_range(n: int, like: Tensor) -> range:
    """Of ``n`` positions those that this process holds, split as ``like`` is."""
    if not is_sharded(like):
        return range(n)
    mesh, _ = _split(like)
    length = -(-n // mesh.size())
    first = min(mesh.get_local_rank() * length, n)
    return range(first, min(first + length, n))


def first_element(tensor: Tensor) -> int:
    """How many elements of ``tensor`` lie before those that this process holds."""
    return held_range(tensor.shape[0], tensor).start * prod(tensor.shape[1:]) if is_sharded(tensor) else 0


def split_as(everything: Tensor, like: Tensor) -> Tensor:
    """``everything`` as a DTensor that is split over the processes of ``like``, and shares no memory with it."""
    return as_split(part_of(everything, like).clone(), like, everything.shape) if is_sharded(like) else everything


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
