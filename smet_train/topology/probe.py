"""Gradients at inactive sites, streamed: the sites where a weight would change the loss most, without a dense gradient.

Growth by gradient (RigL, arXiv 1911.11134, section 3) needs the largest |dL/dW| over the sites that do not exist. A
layer's gradient is made here a few rows at a time, from its input and the gradient of its output, and only the best
sites so far are kept, so what is dense is one chunk of one layer.

Over several micro-batches the score is the absolute mean of their gradients, not a mean of scores: where their noise is
larger than their mean, the best sites of single micro-batches are not the best of all. Sums are therefore kept of as
many sites as values are active, which is the room that gradients take in an ordinary step and that is free during an
update, and the micro-batches are run again for the next sites: about 1/density times. The choice is exact.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.dense import gather_values
from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear
from smet_train.topology.scores import magnitude
from smet_train.topology.select import keep_highest

_CHUNK_WEIGHTS = 1 << 22  # 16 MiB in fp32

AddUp = Callable[[Tensor], object]
RowsGradient = Callable[[int, int], Tensor]  # the gradient of rows first..last, shape (last - first, I)


@dataclass(frozen=True, slots=True)
class Probed:
    """What growth and drop look at, by layer.

    ``sites``: the inactive sites of largest |mean gradient|, ascending, as many as should grow or fewer where the loss
    does not reach. ``active_gradients``: the mean gradient of each slot; empty if not asked for.
    """

    sites: dict[str, Tensor]
    active_gradients: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a layer: what is dense at one time."""

    name: str
    first: int
    last: int
    weights: int


class _Best:
    """The best inactive sites of a layer so far, ascending, with their scores; rows are offered in ascending order."""

    def __init__(self, layer: SparseLinear, capacity: int) -> None:
        self.layer, self.capacity = layer, capacity
        self.sites = torch.empty(0, dtype=layer.layout.index_dtype, device=layer.values.device)
        self.scores = torch.empty(0, dtype=_precise(layer), device=layer.values.device)

    def offer(self, rows: _Rows, gradient: Tensor) -> None:
        """Take the best of these rows, whose gradient is used up."""
        scores = magnitude(_as_blocks(gradient, _layout_of(self.layer, rows)))
        scores[_active_inside(self.layer, rows)[1]] = -1.0  # active sites can't grow
        kept = keep_highest(scores, max(0, scores.numel() - self.capacity)).nonzero().squeeze(1)
        kept = kept[scores[kept] >= 0]
        sites = (kept + _first_site(self.layer, rows)).to(self.sites.dtype)
        self.sites, self.scores = torch.cat([self.sites, sites]), torch.cat([self.scores, scores[kept]])
        if self.sites.numel() > self.capacity:
            best = keep_highest(self.scores, self.scores.numel() - self.capacity)
            self.sites, self.scores = self.sites[best], self.scores[best]


def probe_gradients(
    layers: Mapping[str, SparseLinear],
    n_grow: Mapping[str, int],
    backward: Sequence[Callable[[], Any]],
    *,
    active: bool = False,
    processes: int = 1,
    add_up: AddUp = lambda _: None,
) -> Probed:
    """Run the micro-batches of ``backward`` and find the sites to grow.

    Args:
        n_grow: values to grow, by layer.
        backward: one callable a micro-batch, which computes its loss and calls ``backward()`` on it; it may be called
            more than once. The values of ``layers`` get no gradient meanwhile; what their ``grad`` holds stays. Other
            parameters get theirs, which are the caller's to clear.
        active: also the mean gradient of the active values.
        processes: how many processes have as many micro-batches each; the mean is over all.
        add_up: replaces a tensor by its sum over ``processes``: one chunk of a layer at a time.
    """
    wanted = {layer.values: layer.values.requires_grad for layer in layers.values()}
    best = {name: _Best(layer, n_grow[name]) for name, layer in layers.items() if n_grow[name]}
    at_active = {name: _zeros(layer) for name, layer in layers.items()} if active else {}
    for values in wanted:
        values.requires_grad_(False)
    try:
        for number, rows in enumerate(_passes(layers, n_grow, len(backward) * processes)):
            _run_pass(layers, rows, best, at_active if number == 0 else {}, backward, processes, add_up)
    finally:
        for values, required in wanted.items():
            values.requires_grad_(required)
    return Probed({name: found.sites for name, found in best.items()}, at_active)


def probe_bytes(
    layers: Mapping[str, SparseLinear], n_grow: Mapping[str, int], n_micro_batches: int, active: bool
) -> int:
    """Bytes that :func:`probe_gradients` holds beside what a backward pass does: what is dense at one time, the best
    sites and, with ``active``, the gradients of the active values."""
    passes = _passes(layers, n_grow, n_micro_batches)
    if n_micro_batches == 1:
        dense = max((rows.weights * _width(layers[rows.name]) for rows in passes[0]), default=0)
    else:
        dense = max(sum(rows.weights * _width(layers[rows.name]) for rows in rows_of_pass) for rows_of_pass in passes)
    candidates = sum(
        n_grow[name] * (_width(layer) + layer.layout.index_dtype.itemsize) for name, layer in layers.items()
    )
    return dense + candidates + sum(layer.layout.n_values * _width(layer) for layer in layers.values() if active)


def _precise(layer: SparseLinear) -> torch.dtype:
    """Sums of gradients are never narrower than fp32."""
    return torch.float64 if layer.values.dtype == torch.float64 else torch.float32


def _width(layer: SparseLinear) -> int:
    return _precise(layer).itemsize


def _zeros(layer: SparseLinear) -> Tensor:
    return torch.zeros(layer.layout.values_shape, dtype=_precise(layer), device=layer.values.device)


def _chunks(name: str, layer: SparseLinear) -> list[_Rows]:
    block, columns = layer.layout.block, layer.in_features
    rows = max(1, _CHUNK_WEIGHTS // (columns * block)) * block
    edges = [*range(0, layer.out_features, rows), layer.out_features]
    return [_Rows(name, first, last, (last - first) * columns) for first, last in pairwise(edges)]


def _layout_of(layer: SparseLinear, rows: _Rows) -> Layout:
    """The layout of these rows alone; how many of their sites are active does not matter."""
    return replace(layer.layout, out_features=rows.last - rows.first, n_active=1)


def _first_site(layer: SparseLinear, rows: _Rows) -> int:
    return rows.first // layer.layout.block * layer.layout.block_columns


def _as_blocks(dense: Tensor, layout: Layout) -> Tensor:
    """A dense gradient with one slot a site: (sites,) or (sites, b, b)."""
    if layout.block == 1:
        return dense.reshape(-1)
    every_site = torch.arange(layout.sites, dtype=layout.index_dtype, device=dense.device)
    return gather_values(dense, every_site, layout)


def _passes(layers: Mapping[str, SparseLinear], n_grow: Mapping[str, int], n_micro_batches: int) -> list[list[_Rows]]:
    """Which rows each pass over the micro-batches looks for growth in: all in one pass if nothing must be summed, else
    as many as fit the room of the gradients. There is always one pass, for the active values."""
    room = max(_CHUNK_WEIGHTS, sum(layer.layout.n_values for layer in layers.values()))
    passes: list[list[_Rows]] = [[]]
    held = 0
    for rows in (rows for name, layer in layers.items() if n_grow[name] for rows in _chunks(name, layer)):
        held += rows.weights
        if n_micro_batches > 1 and held > room and passes[-1]:
            passes.append([])
            held = rows.weights
        passes[-1].append(rows)
    return passes


def _active_inside(layer: SparseLinear, rows: _Rows) -> tuple[slice, Tensor]:
    """The slots whose sites lie in ``rows``, and those sites counted from the first of ``rows``."""
    index_K, offset = layer.index, _first_site(layer, rows)
    low, high = (int(torch.searchsorted(index_K, edge)) for edge in (offset, offset + _layout_of(layer, rows).sites))
    return slice(low, high), index_K[low:high] - offset


def _run_pass(
    layers: Mapping[str, SparseLinear],
    rows_of_pass: Sequence[_Rows],
    best: Mapping[str, _Best],
    at_active: Mapping[str, Tensor],
    backward: Sequence[Callable[[], Any]],
    processes: int,
    add_up: AddUp,
) -> None:
    """One pass over all micro-batches: offer ``rows_of_pass`` to ``best`` and add up the gradients of active values."""
    n = len(backward) * processes
    sums: dict[_Rows, Tensor] = {}
    growing = set(rows_of_pass)

    def take(name: str, gradient: RowsGradient) -> None:
        layer = layers[name]
        for rows in _chunks(name, layer):
            if rows not in growing and name not in at_active:
                continue
            dense = gradient(rows.first, rows.last).to(_precise(layer))
            if name in at_active:
                slots, inside = _active_inside(layer, rows)
                at_active[name][slots] += gather_values(dense, inside, _layout_of(layer, rows)) / n
            if rows in growing and n == 1:
                best[name].offer(rows, dense)
            elif rows in growing:
                sums[rows] = sums[rows].add_(dense) if rows in sums else dense

    _run(layers, backward, take)
    for gradient in at_active.values():
        add_up(gradient)
    for rows in rows_of_pass:
        if rows in sums:
            add_up(sums[rows])
            best[rows.name].offer(rows, sums.pop(rows).div_(n))


def _run(
    layers: Mapping[str, SparseLinear],
    backward: Sequence[Callable[[], Any]],
    take: Callable[[str, RowsGradient], None],
) -> None:
    """Call ``take(layer name, gradient of rows)`` in the backward pass of each micro-batch."""
    handles = [layer.register_forward_hook(_watch(name, take)) for name, layer in layers.items()]
    try:
        for micro_batch in backward:
            micro_batch()
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, take: Callable[[str, RowsGradient], None]) -> Callable[..., Tensor]:
    def after_forward(_layer: SparseLinear, inputs: tuple[Tensor, ...], y_NO: Tensor) -> Tensor:
        x_NI = inputs[0].detach()

        @torch.no_grad()
        def on_gradient(grad_y_NO: Tensor) -> None:
            g_NO = grad_y_NO.flatten(0, -2)
            x = x_NI.flatten(0, -2).to(g_NO.dtype)
            take(name, lambda first, last: g_NO[:, first:last].t() @ x)

        if not y_NO.requires_grad:  # the first layer of all, now that its values ask for no gradient
            y_NO.requires_grad_()
        y_NO.register_hook(on_gradient)
        return y_NO

    return after_forward
