"""Gradients at inactive sites, streamed: the sites where a weight would change the loss most, without a dense gradient.

Growth by gradient (RigL, arXiv 1911.11134, section 3) needs the largest |dL/dW| over the sites that do not exist. A
layer's gradient is made here a few rows at a time, from its input and the gradient of its output, and only the best
sites so far are kept, so what is dense is one chunk of one layer.

Over several micro-batches the score is the absolute mean of their gradients, not of their scores. The first pass
collects a pool: the best sites of any micro-batch, ``POOL`` times as many as will grow. The second pass adds
up the gradients at the pool's sites. With one micro-batch, or a pool that holds all inactive sites, that is exact; else
a site that is among the best of no single micro-batch is not found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.linear import SparseLinear

POOL = 4  # candidates for each value to grow, where several micro-batches are averaged
_CHUNK_SITES = 1 << 22  # 16 MiB in fp32


@dataclass
class _Pool:
    """Candidate sites of one layer, ascending, with their best single score and the sum of their gradients."""

    sites: Tensor
    best: Tensor
    sums: Tensor = field(init=False)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.sites, self.best, self.sums))


@dataclass(frozen=True, slots=True)
class Probed:
    """What growth and drop look at: per layer the candidate sites with their mean gradient (with one micro-batch its
    absolute value), and the mean gradient of the active values.

    ``nbytes`` is the most that the pools held.
    """

    sites: dict[str, Tensor]
    gradients: dict[str, Tensor]
    active_gradients: dict[str, Tensor]
    nbytes: int


def probe_gradients(
    layers: Mapping[str, SparseLinear],
    n_grow: Mapping[str, int],
    backward: Sequence[Callable[[], Any]],
) -> Probed:
    """Run the micro-batches of ``backward`` and collect candidates for growth.

    Args:
        n_grow: values to grow, by layer; 0 looks at active values alone.
        backward: one callable a micro-batch, which computes its loss and calls ``backward()`` on it. Gradients that
            exist before are put back afterwards.
    """
    kept = {name: layer.values.grad for name, layer in layers.items()}
    for layer in layers.values():
        layer.values.grad = None
    single = len(backward) == 1
    pools = {name: _empty_pool(layer) for name, layer in layers.items()}
    capacity = {name: n_grow[name] * (1 if single else POOL) for name in layers}

    def collect(name: str, gradient: Callable[[int, int], Tensor]) -> None:
        _collect(pools[name], layers[name], gradient, capacity[name])

    def add_up(name: str, gradient: Callable[[int, int], Tensor]) -> None:
        _add_up(pools[name], layers[name], gradient)

    _run(layers, backward, collect)
    active = {name: _active_gradient(layer, len(backward)) for name, layer in layers.items()}
    for pool in pools.values():
        pool.sums = torch.zeros_like(pool.best)
    if any(n_grow.values()) and not single:
        _run(layers, backward, add_up)
    for name, layer in layers.items():
        layer.values.grad = kept[name]
    return Probed(
        {name: pool.sites for name, pool in pools.items()},
        {name: pool.best if single else pool.sums / len(backward) for name, pool in pools.items()},
        active,
        sum(pool.nbytes() for pool in pools.values()),
    )


def _empty_pool(layer: SparseLinear) -> _Pool:
    device = layer.index.device
    return _Pool(torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=_precise(layer), device=device))


def _precise(layer: SparseLinear) -> torch.dtype:
    """Sums of gradients are never narrower than fp32."""
    return torch.float64 if layer.values.dtype == torch.float64 else torch.float32


def _active_gradient(layer: SparseLinear, n_micro_batches: int) -> Tensor:
    gradient = layer.values.grad
    layer.values.grad = None
    return torch.zeros_like(layer.values) if gradient is None else gradient.detach() / n_micro_batches


def _run(
    layers: Mapping[str, SparseLinear],
    backward: Sequence[Callable[[], Any]],
    take: Callable[[str, Callable[[int, int], Tensor]], None],
) -> None:
    """Call ``take(layer name, gradient of rows)`` in the backward pass of each micro-batch."""
    handles = [layer.register_forward_hook(_watch(name, take)) for name, layer in layers.items()]
    try:
        for micro_batch in backward:
            micro_batch()
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, take: Callable[[str, Callable[[int, int], Tensor]], None]) -> Callable[..., None]:
    def after_forward(_layer: SparseLinear, inputs: tuple[Tensor, ...], y_NO: Tensor) -> None:
        x_NI = inputs[0].detach()

        def on_gradient(grad_y_NO: Tensor) -> None:
            g_NO = grad_y_NO.detach().flatten(0, -2)
            x = x_NI.flatten(0, -2).to(g_NO.dtype)
            take(name, lambda first, last: g_NO[:, first:last].t() @ x)

        if y_NO.requires_grad:
            y_NO.register_hook(on_gradient)

    return after_forward


def _chunks(layer: SparseLinear) -> list[tuple[int, int]]:
    rows = max(1, _CHUNK_SITES // layer.in_features)
    return [(first, min(first + rows, layer.out_features)) for first in range(0, layer.out_features, rows)]


@torch.no_grad()
def _collect(pool: _Pool, layer: SparseLinear, gradient: Callable[[int, int], Tensor], capacity: int) -> None:
    """Merge the best inactive sites of this micro-batch into the pool, which holds at most ``capacity``."""
    if capacity == 0:
        return
    sites, scores = _empty_pool(layer).sites, _empty_pool(layer).best
    index = layer.index.long()
    for first, last in _chunks(layer):
        offset, end = first * layer.in_features, last * layer.in_features
        dense = gradient(first, last).reshape(-1).abs_().to(pool.best.dtype)
        inside = index[torch.searchsorted(index, offset) : torch.searchsorted(index, end)] - offset
        dense[inside] = -1.0  # active sites can't grow
        best = dense.topk(min(capacity, dense.numel() - inside.numel()))
        sites, scores = torch.cat([sites, best.indices + offset]), torch.cat([scores, best.values])
        if sites.numel() > capacity:
            kept = scores.topk(capacity).indices
            sites, scores = sites[kept], scores[kept]
    merged, where = torch.cat([pool.sites, sites]).unique(return_inverse=True)
    best_scores = torch.zeros(merged.numel(), dtype=pool.best.dtype, device=merged.device)
    best_scores.scatter_reduce_(0, where, torch.cat([pool.best, scores]), "amax")
    if merged.numel() > capacity:
        kept = best_scores.topk(capacity).indices.sort().values
        merged, best_scores = merged[kept], best_scores[kept]
    pool.sites, pool.best = merged, best_scores


@torch.no_grad()
def _add_up(pool: _Pool, layer: SparseLinear, gradient: Callable[[int, int], Tensor]) -> None:
    for first, last in _chunks(layer):
        offset, end = first * layer.in_features, last * layer.in_features
        low, high = (int(torch.searchsorted(pool.sites, edge)) for edge in (offset, end))
        if low < high:
            pool.sums[low:high] += gradient(first, last).reshape(-1)[pool.sites[low:high] - offset].to(pool.sums.dtype)
