"""Blocks of weights as small library products: of a slice of the input with one block, into a slice of the output.

Nothing is gathered, copied or padded: a slice has the stride of the whole, which matrix products take as it is, and the
last blocks of a row or column are as narrow as W leaves them. In 16 bits each block of a row rounds its sum anew.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from smet_train.sparse.backends.operators import PackedBackend, differentiate
from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout


@torch.library.custom_op("smet::block_linear", mutates_args=())
def block_linear(x: Tensor, values: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """y = x W^T, (..., I) to (..., O), of blocks ``values`` (G, b, b) at the sites of ``packed``."""
    x_NI = x.reshape(-1, x.shape[-1])
    y_NO = x.new_zeros(x_NI.shape[0], out_features)
    for block, rows, columns in _blocks(values, packed, out_features, x.shape[-1]):
        y_NO[:, rows].addmm_(x_NI[:, columns], block.t())
    return y_NO.view(*x.shape[:-1], out_features)


@torch.library.custom_op("smet::block_linear_backward", mutates_args=())
def block_linear_backward(
    grad_y: Tensor, x: Tensor, values: Tensor, packed: Tensor, of_x: bool, of_values: bool
) -> tuple[Tensor, Tensor]:
    """(dL/dx, dL/dvalues); one that is not asked for is empty."""
    x_NI, g_NO = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    grad_x = x.new_zeros(x_NI.shape if of_x else (0, x.shape[-1]))
    grad_values = values.new_zeros(values.shape if of_values else (0,))
    for slot, (block, rows, columns) in enumerate(_blocks(values, packed, g_NO.shape[1], x_NI.shape[1])):
        if of_x:
            grad_x[:, columns].addmm_(g_NO[:, rows], block)
        if of_values:
            out = grad_values[slot, : block.shape[0], : block.shape[1]]
            if out.is_contiguous():
                torch.mm(g_NO[:, rows].t(), x_NI[:, columns], out=out)
            else:
                out.copy_(g_NO[:, rows].t() @ x_NI[:, columns])
    return grad_x.view(x.shape) if of_x else grad_x, grad_values


differentiate(block_linear, block_linear_backward)


class BlockBackend(PackedBackend):
    """Blocks of weights, one product of the library an active block; CPU."""

    operator = block_linear
    name = "block"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:
        """Single values, GPUs, whole numbers."""
        if layout.block == 1:
            return "it computes blocks, not single values; set sparsity.block_size, or use csr or densify"
        if device.type not in ("cpu", "meta"):
            return "a product a block is too little work for it; use densify"
        if not dtype.is_floating_point:
            return "it multiplies floating-point numbers"
        return None


def _blocks(
    values: Tensor, packed: Tensor, out_features: int, in_features: int
) -> Iterator[tuple[Tensor, slice, slice]]:
    """Each active block, cut to what lies inside W, and the rows and columns of W that it covers."""
    n_active, b, _ = values.shape
    layout = Layout(out_features, in_features, n_active, b)
    for slot, site in enumerate(unpack(packed, layout).tolist()):
        row, column = site // layout.block_columns * b, site % layout.block_columns * b
        rows, columns = slice(row, min(row + b, out_features)), slice(column, min(column + b, in_features))
        yield values[slot, : rows.stop - row, : columns.stop - column], rows, columns
