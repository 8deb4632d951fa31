"""The only place that changes a topology: a move into values, index and optimizer state, all in place."""

import torch
from torch import Tensor

from smet_train.errors import LayoutError
from smet_train.optim.fp8 import read_slots, slot_keys, write_slots
from smet_train.sparse.linear import SparseLinear
from smet_train.topology.move import Move


@torch.no_grad()
def apply_move(
    name: str,
    layer: SparseLinear,
    move: Move,
    optimizer: torch.optim.Optimizer,
    *,
    keep_moments: bool = False,
) -> None:
    """Apply ``move`` to ``layer``.

    Every optimizer state shaped like the values is held per slot and moves with them; scalars stay. The gradient is
    dropped, since it belongs to the old slots. With ``keep_moments`` a grown weight takes over the floating-point state
    of a dropped one, instead of zeros: what becomes of it where slots are reused without clearing them.

    Raises:
        LayoutError: if an optimizer state has another shape, so that nobody can say how it should move.
    """
    parameter = layer.values
    if hasattr(optimizer, "note_topology_update"):
        optimizer.note_topology_update(parameter)
    state = optimizer.state[parameter]
    for key in slot_keys(state):
        held = read_slots(state, key)
        _check_per_slot(name, key, held, parameter)
        inherits = keep_moments and held.is_floating_point()
        write_slots(state, key, move.gather_all(held) if inherits else move.gather(held))
    parameter.copy_(move.gather(parameter.detach()))
    parameter.grad = None
    layer.set_index(move.new_index_K)


@torch.no_grad()
def apply_shrink(name: str, layer: SparseLinear, keep_K: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Keep the slots marked in ``keep_K`` alone: values, index and per-slot optimizer state become shorter.

    Raises:
        LayoutError: if an optimizer state has another shape, or if nothing would be left.
    """
    parameter = layer.values
    state = optimizer.state[parameter]
    shrunken: dict[str, Tensor] = {}
    for key in slot_keys(state):
        held = read_slots(state, key)
        _check_per_slot(name, key, held, parameter)
        shrunken[key] = held[keep_K]
    layer.shrink(keep_K)
    for key, numbers in shrunken.items():
        write_slots(state, key, numbers)


def _check_per_slot(name: str, key: str, state: Tensor, parameter: Tensor) -> None:
    if state.shape[0] != parameter.shape[0]:
        raise LayoutError(
            f"layer {name}: optimizer state '{key}' has shape {tuple(state.shape)}, the values "
            f"{tuple(parameter.shape)}; a topology can only move with state that is held per active value"
        )


def check_moved(
    name: str, layer: SparseLinear, move: Move, optimizer: torch.optim.Optimizer, *, keep_moments: bool = False
) -> None:
    """Verify a layer right after a move (``debug.check_invariants``).

    The index must be valid, and values and per-slot optimizer state (unless it is kept) zero at grown slots.

    Raises:
        LayoutError: naming the layer and what does not hold.
    """
    layer.layout.validate_index(layer.index)
    state = optimizer.state[layer.values]
    held = {} if keep_moments else {key: read_slots(state, key) for key in slot_keys(state)}
    for key, numbers in {"values": layer.values.detach(), **held}.items():
        if bool(numbers[move.grown_K].any()):
            raise LayoutError(f"layer {name}: '{key}' is not zero at a slot grown in this update")
