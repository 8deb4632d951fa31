"""Between the values of active slots and a dense weight."""

import torch
from torch import Tensor
from torch.nn import functional as F

from smet_train.sparse.layout import Layout


def scatter_dense(values: Tensor, index_K: Tensor, layout: Layout) -> Tensor:
    """The dense weight, shape (O, I): zero everywhere but at the active sites."""
    if layout.block == 1:
        flat = values.new_zeros(layout.sites)
        # Assignment and not addition: sites are unique, so the result is the same bits on every device.
        flat.index_put_((index_K,), values)
        return flat.view(layout.out_features, layout.in_features)
    wide = values.new_zeros(layout.block_rows * layout.block, layout.block_columns * layout.block)
    _blocks(wide, layout).index_put_(_rows_and_columns(index_K, layout), values)
    return wide[: layout.out_features, : layout.in_features]


def gather_values(dense_OI: Tensor, index_K: Tensor, layout: Layout) -> Tensor:
    """The entries of ``dense_OI`` at the active sites, shaped like the values; 0 where a block reaches beyond it."""
    if layout.block == 1:
        return dense_OI.reshape(-1).index_select(0, index_K)
    missing_rows = layout.block_rows * layout.block - layout.out_features
    missing_columns = layout.block_columns * layout.block - layout.in_features
    wide = F.pad(dense_OI, (0, missing_columns, 0, missing_rows)) if missing_rows or missing_columns else dense_OI
    return _blocks(wide.contiguous(), layout)[_rows_and_columns(index_K, layout)]


def _blocks(wide: Tensor, layout: Layout) -> Tensor:
    """(rows, columns) as (block rows, block columns, b, b), the same memory."""
    return wide.view(layout.block_rows, layout.block, layout.block_columns, layout.block).transpose(1, 2)


def _rows_and_columns(index_K: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    rows = torch.div(index_K, layout.block_columns, rounding_mode="floor")
    return rows, index_K - rows * layout.block_columns
