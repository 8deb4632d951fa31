"""Gradients at inactive sites where layers are split over processes: :mod:`smet_train.topology.probe` by all together.

The layers are dealt out, and the sums and the best sites of a layer are in one process alone, its owner, to which every
chunk of its gradient is added up as soon as it is there. All owners together have as much room for sums as one process
that has the whole model, so the micro-batches are run about as often. If each process has one micro-batch, its owner
has the whole sum of a chunk at once, and they are run once, and again only for layers that are called several times.
What is chosen is what one process would choose, but for the rounding of gradients: those of the values are summed over
processes in the values' dtype.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import held_range, is_sharded, local
from smet_train.topology.candidates import (
    Best,
    Rows,
    RowsGradient,
    candidate_bytes,
    chunks,
    not_finite,
    precise,
    room,
    watch_gradients,
    width,
)
from smet_train.topology.group import Group
from smet_train.topology.probe import Found, zeros
from smet_train.topology.whole import whole_index


def are_sharded(layers: Mapping[str, SparseLinear]) -> bool:
    """Whether ``layers`` are split over processes."""
    return any(is_sharded(layer.values) for layer in layers.values())


@dataclass(frozen=True, slots=True)
class ShardedProbed:
    """What was found: the sites of each layer in its owner, the gradients of the values split as those are."""

    layers: Mapping[str, SparseLinear]
    n_grow: Mapping[str, int]
    owners: Mapping[str, int]
    sites: Mapping[str, Tensor]
    active_gradients: Mapping[str, Tensor]
    not_finite: str | None  # the first layer whose gradient holds a NaN or an infinity, in whichever process
    group: Group

    def of(self, name: str) -> Found:
        """What was found in the layer ``name``, made whole; all processes ask in the same order."""
        layer, gradient = self.layers[name], self.active_gradients.get(name)
        whole = None if gradient is None else self.group.whole(gradient, layer.values)
        return Found(self._spread(name, layer) if self.n_grow[name] else None, whole)

    def _spread(self, name: str, layer: SparseLinear) -> Tensor:
        """The sites that the owner has found, behind their number."""
        told = torch.zeros(self.n_grow[name] + 1, dtype=torch.int64, device=layer.values.device)
        if name in self.sites:
            found = self.sites[name]
            told[0], told[1 : found.numel() + 1] = found.numel(), found
        self.group.spread(told, self.owners[name])
        return told[1 : int(told[0]) + 1].to(layer.layout.index_dtype)


def probe_sharded(
    layers: Mapping[str, SparseLinear],
    n_grow: Mapping[str, int],
    backward: Sequence[Callable[[], Any]],
    *,
    active: bool,
    group: Group,
) -> ShardedProbed:
    """As :func:`smet_train.topology.probe.probe_gradients`, for layers that are split over ``group``.

    The values get their gradients, as the mean over ``group``, which are used up here: any that were there before too.
    """
    owners = _deal(layers, n_grow, group.size)
    best = {name: Best(layer, n_grow[name]) for name, layer in layers.items() if owners.get(name) == group.rank}
    at_active = {name: zeros(layer) for name, layer in layers.items()} if active else {}
    for layer in layers.values():
        layer.values.grad = None
    summed = len(backward) > 1
    repeated: set[str] = set()

    def run(rows: Sequence[Rows], active_too: Mapping[str, Tensor], *, summed: bool) -> None:
        used_up = [partial(_use_up, micro_batch, layers, active_too, len(backward)) for micro_batch in backward]
        repeated.update(_run_pass(layers, rows, owners, best, used_up, group, summed=summed))

    for number, rows in enumerate(_passes(layers, owners, group.size, summed=summed)):
        run(rows, at_active if number == 0 else {}, summed=summed)
    if repeated:
        best |= {name: Best(layers[name], n_grow[name]) for name in best if name in repeated}
        left = {name: owner for name, owner in owners.items() if name in repeated}
        for rows in _passes(layers, left, group.size, summed=True):
            run(rows, {}, summed=True)
    sites = {name: found.sites for name, found in best.items()}
    return ShardedProbed(
        layers,
        n_grow,
        owners,
        sites,
        at_active,
        first_marked(layers, not_finite(layers, best, at_active), group),
        group,
    )


def first_marked(layers: Mapping[str, SparseLinear], marks: Sequence[bool], group: Group) -> str | None:
    """The first of ``layers`` that any process has marked; where they are not split, all have marked the same."""
    marked = torch.tensor(marks, dtype=torch.int32, device=next(iter(layers.values())).values.device)
    if are_sharded(layers):
        group.add_up(marked)
    return next(compress(layers, marked.tolist()), None)


def sharded_probe_bytes(
    layers: Mapping[str, SparseLinear], n_grow: Mapping[str, int], n_micro_batches: int, active: bool, group: Group
) -> int:
    """Bytes that :func:`probe_sharded` holds in this process beside what a backward pass does.

    Args:
        n_micro_batches: of this process.
    """
    owners = _deal(layers, n_grow, group.size)

    def held(rows_of_pass: Sequence[Rows]) -> int:
        own = (rows for rows in rows_of_pass if owners[rows.name] == group.rank)
        return sum(rows.weights * width(layers[rows.name]) for rows in own)

    passes = _passes(layers, owners, group.size, summed=n_micro_batches > 1)
    chunk = max((rows.weights * width(layers[rows.name]) for rows_of in passes for rows in rows_of), default=0)
    sums = max(held(rows_of_pass) for rows_of_pass in passes) if n_micro_batches > 1 else 0
    candidates = sum(candidate_bytes(layers[name], n_grow[name]) for name in owners if owners[name] == group.rank)
    return chunk + sums + candidates + sum(_held_values(layer) * width(layer) for layer in layers.values() if active)


def _use_up(
    micro_batch: Callable[[], Any], layers: Mapping[str, SparseLinear], at_active: Mapping[str, Tensor], n: int
) -> None:
    """Run a micro-batch of ``n``; add the gradients of the values to ``at_active`` and drop them."""
    micro_batch()
    for name, layer in layers.items():
        if name in at_active and layer.values.grad is not None:
            at_active[name].add_(local(layer.values.grad), alpha=1 / n)
        layer.values.grad = None


def _run_pass(
    layers: Mapping[str, SparseLinear],
    rows_of_pass: Sequence[Rows],
    owners: Mapping[str, int],
    best: Mapping[str, Best],
    backward: Sequence[Callable[[], Any]],
    group: Group,
    *,
    summed: bool,
) -> set[str]:
    """One pass over all micro-batches: offer ``rows_of_pass`` to ``best``, each in its owner.

    Returns:
        Without ``summed``, the layers that have a gradient more than once; what they were offered is the first.
    """
    n = len(backward) * group.size
    sums: dict[Rows, Tensor] = {}
    met: set[str] = set()
    repeated: set[str] = set()
    growing = set(rows_of_pass)

    def take(name: str, gradient: RowsGradient) -> None:
        if name in met and name in owners and not summed:
            repeated.add(name)
            return
        met.add(name)
        layer = layers[name]  # whose index is whole in its backward pass
        for rows in chunks(name, layer):
            if rows not in growing:
                continue
            dense = gradient(rows.first, rows.last).to(precise(layer))
            group.add_up_in(dense, owners[name])
            if name in best and not summed:
                best[name].offer(rows, dense.div_(n), layer.index)
            elif name in best and summed:
                sums[rows] = sums[rows].add_(dense) if rows in sums else dense

    watch_gradients(layers, backward, take)
    if not summed:
        return repeated
    for name in dict.fromkeys(rows.name for rows in rows_of_pass):
        index_K = whole_index(layers[name], group.whole)
        for rows in [rows for rows in sums if rows.name == name]:
            best[name].offer(rows, sums.pop(rows).div_(n), index_K)
    return set()


def _held_values(layer: SparseLinear) -> int:
    return len(held_range(layer.layout.n_active, layer.values)) * layer.layout.block**2


def _deal(layers: Mapping[str, SparseLinear], n_grow: Mapping[str, int], size: int) -> dict[str, int]:
    """Which process owns each layer that grows: the largest first, each to the one that has the least."""
    load = [0] * size
    owners: dict[str, int] = {}
    growing = [name for name in layers if n_grow[name]]
    for name in sorted(growing, key=lambda name: -layers[name].layout.weights):
        owners[name] = load.index(min(load))
        load[owners[name]] += layers[name].layout.weights
    return {name: owners[name] for name in growing}


def _passes(
    layers: Mapping[str, SparseLinear], owners: Mapping[str, int], size: int, *, summed: bool
) -> list[list[Rows]]:
    """Which rows each pass looks for growth in: all in one if nothing must be kept between micro-batches, else of each
    owner an equal part a pass, in as many passes as the room of the whole model's gradients takes."""
    everything = sum(layers[name].layout.weights for name in owners)
    n = max(1, -(-everything // room(layers))) if summed else 1
    passes: list[list[Rows]] = [[] for _ in range(n)]
    for owner in range(size):
        own = [rows for name in owners if owners[name] == owner for rows in chunks(name, layers[name])]
        for number, rows_of_pass in enumerate(passes):
            rows_of_pass += own[number * len(own) // n : (number + 1) * len(own) // n]
    return passes
