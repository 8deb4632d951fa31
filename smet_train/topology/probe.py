"""Gradients at inactive sites, streamed: the sites where a weight would change the loss most, without a dense gradient.

Growth by gradient (RigL, arXiv 1911.11134, section 3) needs the largest |dL/dW| over the sites that do not exist. A
layer's gradient is made here a few rows at a time, from its input and the gradient of its output, and only the best
sites so far are kept, so what is dense is one chunk of one layer.

Over several micro-batches the score is the absolute mean of their gradients, not a mean of scores: where their noise is
larger than their mean, the best sites of single micro-batches are not the best of all. Sums are therefore kept of as
many sites as values are active, which is the room that gradients take in an ordinary step and that is free during an
update, and the micro-batches are run again for the next sites: about 1/density times. The choice is exact.

The same holds for a layer that one micro-batch calls several times: its gradient is a sum over the calls, of which each
backward pass gives one at a time. That it is one shows in the first pass; it is then left to further ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.dense import gather_values
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import local
from smet_train.topology.candidates import (
    Best,
    Rows,
    RowsGradient,
    active_inside,
    candidate_bytes,
    chunks,
    layout_of,
    not_finite,
    precise,
    room,
    watch_gradients,
    width,
)
from smet_train.topology.group import ALONE, Group


@dataclass(frozen=True, slots=True)
class Found:
    """What growth and drop look at in one layer.

    ``sites``: the inactive sites of largest |mean gradient|, ascending, as many as should grow or fewer where the loss
    does not reach; None if none should. ``gradient``: the mean gradient of each slot; None if not asked for.
    """

    sites: Tensor | None
    gradient: Tensor | None


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found in each layer, in a process that has all of it."""

    sites: dict[str, Tensor]
    active_gradients: dict[str, Tensor]
    not_finite: str | None  # the first layer whose gradient holds a NaN or an infinity

    def of(self, name: str) -> Found:
        """What was found in the layer ``name``."""
        return Found(self.sites.get(name), self.active_gradients.get(name))


def probe_gradients(
    layers: Mapping[str, SparseLinear],
    n_grow: Mapping[str, int],
    backward: Sequence[Callable[[], Any]],
    *,
    active: bool = False,
    group: Group = ALONE,
) -> Probed:
    """Run the micro-batches of ``backward`` and find the sites to grow.

    Args:
        n_grow: values to grow, by layer.
        backward: one callable a micro-batch, which computes its loss and calls ``backward()`` on it; it may be called
            more than once. The values of ``layers`` get no gradient meanwhile; what their ``grad`` holds stays. Other
            parameters get theirs, which are the caller's to clear.
        active: also the mean gradient of the active values.
        group: processes that have as many micro-batches each; the mean is over all. Each has all of the layers: for
            others see :mod:`smet_train.topology.sharded_probe`.
    """
    wanted = {layer.values: layer.values.requires_grad for layer in layers.values()}
    best = {name: Best(layer, n_grow[name]) for name, layer in layers.items() if n_grow[name]}
    at_active = {name: zeros(layer) for name, layer in layers.items()} if active else {}
    for values in wanted:
        values.requires_grad_(False)
    try:
        n = len(backward) * group.size
        repeated: set[str] = set()
        for number, rows in enumerate(_passes(layers, n_grow, summed=n > 1)):
            first_only = at_active if number == 0 else {}
            repeated |= _run_pass(layers, rows, best, first_only, backward, group, summed=n > 1)
        if repeated:
            best |= {name: Best(layers[name], n_grow[name]) for name in repeated}
            left = {name: n_grow[name] if name in repeated else 0 for name in layers}
            for rows in _passes(layers, left, summed=True):
                _run_pass(layers, rows, best, {}, backward, group, summed=True)
    finally:
        for values, required in wanted.items():
            values.requires_grad_(required)
    bad = next(compress(layers, not_finite(layers, best, at_active)), None)
    return Probed({name: found.sites for name, found in best.items()}, at_active, bad)


def probe_bytes(
    layers: Mapping[str, SparseLinear], n_grow: Mapping[str, int], n_micro_batches: int, active: bool
) -> int:
    """Bytes that :func:`probe_gradients` holds beside what a backward pass does: what is dense at one time, the best
    sites and, with ``active``, the gradients of the active values. With one micro-batch no layer is called twice."""
    passes = _passes(layers, n_grow, summed=n_micro_batches > 1)
    if n_micro_batches == 1:
        dense = max((rows.weights * width(layers[rows.name]) for rows in passes[0]), default=0)
    else:
        dense = max(sum(rows.weights * width(layers[rows.name]) for rows in rows_of_pass) for rows_of_pass in passes)
    candidates = sum(candidate_bytes(layer, n_grow[name]) for name, layer in layers.items())
    return dense + candidates + sum(layer.layout.n_values * width(layer) for layer in layers.values() if active)


def zeros(layer: SparseLinear) -> Tensor:
    """Room for the gradients of the values that this process holds."""
    return torch.zeros_like(local(layer.values.detach()), dtype=precise(layer))


def _passes(layers: Mapping[str, SparseLinear], n_grow: Mapping[str, int], *, summed: bool) -> list[list[Rows]]:
    """Which rows each pass over the micro-batches looks for growth in: all in one pass if nothing must be summed, else
    as many as fit the room of the gradients. There is always one pass, for the active values."""
    most = room(layers)
    passes: list[list[Rows]] = [[]]
    held = 0
    for rows in (rows for name, layer in layers.items() if n_grow[name] for rows in chunks(name, layer)):
        held += rows.weights
        if summed and held > most and passes[-1]:
            passes.append([])
            held = rows.weights
        passes[-1].append(rows)
    return passes


def _run_pass(
    layers: Mapping[str, SparseLinear],
    rows_of_pass: Sequence[Rows],
    best: Mapping[str, Best],
    at_active: Mapping[str, Tensor],
    backward: Sequence[Callable[[], Any]],
    group: Group,
    *,
    summed: bool,
) -> set[str]:
    """One pass over all micro-batches: offer ``rows_of_pass`` to ``best`` and add up the gradients of active values.

    Returns:
        Without ``summed``, the layers that have a gradient more than once; what they were offered is the first.
    """
    n = len(backward) * group.size
    sums: dict[Rows, Tensor] = {}
    met: set[str] = set()
    repeated: set[str] = set()
    growing = set(rows_of_pass)

    def take(name: str, gradient: RowsGradient) -> None:
        if name in met and name in best and not summed:
            repeated.add(name)
        met.add(name)
        layer = layers[name]
        for rows in chunks(name, layer):
            if rows not in growing and name not in at_active:
                continue
            dense = gradient(rows.first, rows.last).to(precise(layer))
            if name in at_active:
                slots, inside = active_inside(layer.index, layer.layout, rows)
                at_active[name][slots] += gather_values(dense, inside, layout_of(layer.layout, rows)) / n
            if rows in growing and not summed and name not in repeated:
                best[name].offer(rows, dense, layer.index)
            elif rows in growing and summed:
                sums[rows] = sums[rows].add_(dense) if rows in sums else dense

    watch_gradients(layers, backward, take)
    for gradient in at_active.values():
        group.add_up(gradient)
    for rows in rows_of_pass:
        if rows in sums:
            group.add_up(sums[rows])
            best[rows.name].offer(rows, sums.pop(rows).div_(n), layers[rows.name].index)
    return repeated
