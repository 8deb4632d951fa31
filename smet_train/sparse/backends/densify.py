"""One transient dense weight per layer: made for the forward product, thrown away, made again for the backward one.

The products are dense, so this backend is about as fast as a dense layer and no faster; what it saves is memory.
Nothing dense is saved for backward, and the dense gradient of the weight, in the weight's room where that is possible,
lives only until its active entries are read.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.backends.operators import PackedBackend, differentiate, room_for
from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout
from smet_train.sparse.rows import gather_rows, rows_are_compiled, rows_of, scatter_rows


class _Sites:
    """Where the values of a layer belong, read once for all uses in a pass."""

    def __init__(self, packed: Tensor, layout: Layout) -> None:
        self._layout = layout
        self._compiled = rows_are_compiled(layout, packed.device)
        self._at: Any = rows_of(packed, layout) if self._compiled else unpack(packed, layout)

    def scatter(self, values: Tensor) -> Tensor:
        return (scatter_rows if self._compiled else scatter_dense)(values, self._at, self._layout)

    def gather(self, dense_OI: Tensor) -> Tensor:
        return (gather_rows if self._compiled else gather_values)(dense_OI, self._at, self._layout)


@torch.library.custom_op("smet::densify_linear", mutates_args=())
def densify_linear(x: Tensor, values: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """y = x W^T, (..., I) to (..., O), of ``values`` at the sites of ``packed``."""
    layout = _layout(values, out_features, x.shape[-1])
    y_NO, y = room_for(x, out_features)
    torch.mm(x.reshape(-1, x.shape[-1]), _Sites(packed, layout).scatter(values).t(), out=y_NO)
    return y


@torch.library.custom_op("smet::densify_linear_backward", mutates_args=())
def densify_linear_backward(
    grad_y: Tensor, x: Tensor, values: Tensor, packed: Tensor, of_x: bool, of_values: bool
) -> tuple[Tensor, Tensor]:
    """(dL/dx, dL/dvalues); one that is not asked for is empty."""
    x_NI, g_NO = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    sites = _Sites(packed, _layout(values, g_NO.shape[1], x_NI.shape[1]))
    grad_x, dense_OI = x.new_empty(0, x.shape[-1]), None
    if of_x:
        dense_OI = sites.scatter(values)
        grad_x = (g_NO @ dense_OI).view(x.shape)
    if not of_values:
        return grad_x, values.new_empty(0)
    if dense_OI is not None and dense_OI.is_contiguous():
        torch.mm(g_NO.t(), x_NI, out=dense_OI)
    else:
        dense_OI = g_NO.t() @ x_NI
    return grad_x, sites.gather(dense_OI)


differentiate(densify_linear, densify_linear_backward)


class DensifyBackend(PackedBackend):
    """One dense weight at a time, made from the values for a product and again for its gradient, never saved."""

    operator = densify_linear
    name = "densify"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:  # noqa: ARG002
        """Nothing: it computes every layout on every device."""
        return None


def _layout(values: Tensor, out_features: int, in_features: int) -> Layout:
    return Layout(out_features, in_features, values.shape[0], 1 if values.dim() == 1 else values.shape[1])


def workspace_bytes(grad_y_or_x: Tensor, *rest: Any) -> int:
    """What an operator of this file holds while it runs: the dense weight or its gradient, and the sites."""
    backward = isinstance(rest[-1], bool)
    x, values = rest[:2] if backward else (grad_y_or_x, rest[0])
    layout = _layout(values, grad_y_or_x.shape[-1] if backward else rest[-1], x.shape[-1])
    dense = layout.sites * layout.block**2 * values.element_size()
    copies = 2 if backward and layout.block > 1 else 1  # blocks: the gradient as it is, and as blocks
    return copies * dense + 2 * layout.n_active


def flops(x: Any, _values: Any, _packed: Any, out_features: int, **_: Any) -> int:
    """Of the forward product, from shapes."""
    return 2 * prod(x) * out_features


def backward_flops(grad_y: Any, x: Any, _values: Any, _packed: Any, of_x: bool, of_values: bool, **_: Any) -> int:
    """Of the products for both gradients, from shapes."""
    return 2 * prod(x) * int(grad_y[-1]) * (int(of_x) + int(of_values))
