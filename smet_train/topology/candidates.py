"""Where a layer might grow: its gradient a few rows at a time, and the best inactive sites so far."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.dense import gather_values
from smet_train.sparse.finite import is_finite
from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear
from smet_train.topology.scores import magnitude
from smet_train.topology.select import keep_highest

CHUNK_WEIGHTS = 1 << 22  # 16 MiB in fp32

RowsGradient = Callable[[int, int], Tensor]  # the gradient of rows first..last, shape (last - first, I)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of the layer ``name``: what is dense at one time."""

    name: str
    first: int
    last: int
    weights: int


class Best:
    """The best inactive sites of a layer so far, ascending, with their scores; rows are offered in ascending order."""

    def __init__(self, layer: SparseLinear, capacity: int) -> None:
        self._layout, self._capacity = layer.layout, capacity
        self.sites = torch.empty(0, dtype=layer.layout.index_dtype, device=layer.values.device)
        self._scores = torch.empty(0, dtype=precise(layer), device=layer.values.device)
        self._largest = torch.zeros((), dtype=precise(layer), device=layer.values.device)

    @property
    def finite(self) -> bool:
        """Whether the gradient of all rows so far holds neither a NaN nor an infinity, at active sites too."""
        return bool(self._largest.isfinite())

    def offer(self, rows: Rows, gradient: Tensor, index_K: Tensor) -> None:
        """Take the best of these rows, whose gradient is used up; the sites ``index_K`` are active."""
        scores = magnitude(_as_blocks(gradient, layout_of(self._layout, rows)))
        self._largest = torch.maximum(self._largest, scores.max())  # a NaN passes through both
        scores[active_inside(index_K, self._layout, rows)[1]] = -1.0  # active sites can't grow
        kept = keep_highest(scores, max(0, scores.numel() - self._capacity)).nonzero().squeeze(1)
        kept = kept[scores[kept] >= 0]
        sites = (kept + _first_site(self._layout, rows)).to(self.sites.dtype)
        self.sites, self._scores = torch.cat([self.sites, sites]), torch.cat([self._scores, scores[kept]])
        if self.sites.numel() > self._capacity:
            best = keep_highest(self._scores, self._scores.numel() - self._capacity)
            self.sites, self._scores = self.sites[best], self._scores[best]


def not_finite(layers: Iterable[str], best: Mapping[str, Best], at_active: Mapping[str, Tensor]) -> list[bool]:
    """Of each layer, whether what was found of its gradient holds a NaN or an infinity."""
    return [
        (name in best and not best[name].finite) or (name in at_active and not is_finite(at_active[name]))
        for name in layers
    ]


def candidate_bytes(layer: SparseLinear, capacity: int) -> int:
    """What :class:`Best` holds."""
    return capacity * (width(layer) + layer.layout.index_dtype.itemsize)


def precise(layer: SparseLinear) -> torch.dtype:
    """Sums of gradients are never narrower than fp32."""
    return torch.float64 if layer.values.dtype == torch.float64 else torch.float32


def width(layer: SparseLinear) -> int:
    """Bytes of a number in :func:`precise`."""
    return precise(layer).itemsize


def chunks(name: str, layer: SparseLinear) -> list[Rows]:
    """All rows of a layer, as many at a time as ``CHUNK_WEIGHTS`` lets be dense."""
    block, columns = layer.layout.block, layer.in_features
    rows = max(1, CHUNK_WEIGHTS // (columns * block)) * block
    edges = [*range(0, layer.out_features, rows), layer.out_features]
    return [Rows(name, first, last, (last - first) * columns) for first, last in pairwise(edges)]


def room(layers: Mapping[str, SparseLinear]) -> int:
    """Of how many weights sums may be held at a time: as many as have gradients in an ordinary step, or a chunk."""
    return max(CHUNK_WEIGHTS, sum(layer.layout.n_values for layer in layers.values()))


def layout_of(layout: Layout, rows: Rows) -> Layout:
    """The layout of these rows alone; how many of their sites are active does not matter."""
    return replace(layout, out_features=rows.last - rows.first, n_active=1)


def active_inside(index_K: Tensor, layout: Layout, rows: Rows) -> tuple[slice, Tensor]:
    """The slots whose sites lie in ``rows``, and those sites counted from the first of ``rows``."""
    offset = _first_site(layout, rows)
    last = offset + layout_of(layout, rows).sites - 1  # not the site behind it, which 32 bits may not hold
    low, high = int(torch.searchsorted(index_K, offset)), int(torch.searchsorted(index_K, last, right=True))
    return slice(low, high), index_K[low:high] - offset


def _first_site(layout: Layout, rows: Rows) -> int:
    return rows.first // layout.block * layout.block_columns


def _as_blocks(dense: Tensor, layout: Layout) -> Tensor:
    """A dense gradient with one slot a site: (sites,) or (sites, b, b)."""
    if layout.block == 1:
        return dense.reshape(-1)
    every_site = torch.arange(layout.sites, dtype=layout.index_dtype, device=dense.device)
    return gather_values(dense, every_site, layout)


def watch_gradients(
    layers: Mapping[str, SparseLinear],
    backward: Sequence[Callable[[], Any]],
    take: Callable[[str, RowsGradient], None],
) -> None:
    """Call ``take(layer name, gradient of rows)`` in the backward pass of each micro-batch."""
    with ExitStack() as watching:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(_watch_calls(name, take), with_kwargs=True, prepend=True)
            watching.callback(hook.remove)
            watching.enter_context(layer.weight_watched(_watch_weight(name, take)))
        for micro_batch in backward:
            micro_batch()


def _watch_calls(name: str, take: Callable[[str, RowsGradient], None]) -> Callable[..., Tensor | None]:
    def after_forward(
        _layer: SparseLinear, inputs: tuple[Tensor, ...], named: dict[str, Tensor], y_NO: Tensor
    ) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        x_NI = (inputs[0] if inputs else named["input"]).detach()

        def on_gradient(grad_y_NO: Tensor) -> None:
            g_NO = grad_y_NO.reshape(-1, grad_y_NO.shape[-1])
            x = x_NI.reshape(-1, x_NI.shape[-1]).to(g_NO.dtype)
            take(name, lambda first, last: g_NO[:, first:last].t() @ x)

        if not y_NO.requires_grad:  # the first layer of all, where its values ask for no gradient
            y_NO = y_NO.requires_grad_().clone()  # no leaf, which nobody could change in place
        y_NO.register_hook(torch.no_grad()(on_gradient))
        return y_NO

    return after_forward


def _watch_weight(name: str, take: Callable[[str, RowsGradient], None]) -> Callable[[Tensor], None]:
    """For modules that compute with the weight of a layer instead of calling it: its gradient is all there."""

    def on_gradient(grad_OI: Tensor) -> None:
        take(name, lambda first, last: grad_OI[first:last].clone())

    def after_read(weight_OI: Tensor) -> None:
        if torch.is_grad_enabled():
            weight_OI.requires_grad_().register_hook(torch.no_grad()(on_gradient))

    return after_read
