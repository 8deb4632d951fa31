"""Blocks of weights as small library products.

In fp32 and fp64 a product is of a slice of the input with one block, into a slice of the output: nothing is gathered,
copied or padded, for a slice has the stride of the whole, which matrix products take as it is. In 16 bits a call of the
library takes as long as the product of a small block, so the inputs of a row of blocks are put side by side, and a row
is one product (a column, for the gradient of x), whose sum is then rounded once. The last blocks of a row or column are
as narrow as W leaves them.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smet_train.sparse.backends.operators import PackedBackend, differentiate, room_for
from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout


class _Block(NamedTuple):
    """An active block, cut to what lies inside W; ``row`` and ``column`` count blocks."""

    slot: int
    row: int
    column: int
    values: Tensor


@torch.library.custom_op("smet::block_linear", mutates_args=())
def block_linear(x: Tensor, values: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """y = x W^T, (..., I) to (..., O), of blocks ``values`` (G, b, b) at the sites of ``packed``."""
    x_NI, edge = x.reshape(-1, x.shape[-1]), values.shape[1]
    y_NO, y_whole = room_for(x, out_features)
    x_parts, y_parts = x_NI.split(edge, 1), y_NO.split(edge, 1)
    rows = _grouped((block.row, block) for block in _blocks(values, packed, out_features, x.shape[-1]))
    beside = _Beside(x_NI)
    for row, y in enumerate(y_parts):
        of_row = rows.get(row, [])
        if of_row and _gathers(x.dtype):
            weight_T = _joined([block.values for block in of_row], 1).t()
            torch.mm(beside([x_parts[block.column] for block in of_row]), weight_T, out=y)
            continue
        y.zero_()
        for block in of_row:
            y.addmm_(x_parts[block.column], block.values.t())
    return y_whole


@torch.library.custom_op("smet::block_linear_backward", mutates_args=())
def block_linear_backward(
    grad_y: Tensor, x: Tensor, values: Tensor, packed: Tensor, of_x: bool, of_values: bool
) -> tuple[Tensor, Tensor]:
    """(dL/dx, dL/dvalues); one that is not asked for is empty."""
    x_NI, g_NO = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    grad_x = x.new_empty(x_NI.shape if of_x else (0, x.shape[-1]))
    grad_values = values.new_zeros(values.shape if of_values else (0,))
    blocks = _blocks(values, packed, g_NO.shape[1], x_NI.shape[1])
    if of_x:
        _fill_grad_x(g_NO, blocks, grad_x, values.shape[1])
    if of_values:
        _fill_grad_values(g_NO, x_NI, blocks, grad_values)
    return grad_x.view(x.shape) if of_x else grad_x, grad_values


differentiate(block_linear, block_linear_backward)


def _fill_grad_x(g_NO: Tensor, blocks: list[_Block], grad_x_NI: Tensor, edge: int) -> None:
    g_parts, columns = g_NO.split(edge, 1), _grouped((block.column, block) for block in blocks)
    beside = _Beside(g_NO)
    for column, grad_x in enumerate(grad_x_NI.split(edge, 1)):
        of_column = columns.get(column, [])
        if of_column and _gathers(g_NO.dtype):
            left = beside([g_parts[block.row] for block in of_column])
            torch.mm(left, _joined([block.values for block in of_column], 0), out=grad_x)
            continue
        grad_x.zero_()
        for block in of_column:
            grad_x.addmm_(g_parts[block.row], block.values)


def _fill_grad_values(g_NO: Tensor, x_NI: Tensor, blocks: list[_Block], grad_values: Tensor) -> None:
    edge = grad_values.shape[1]
    g_parts, x_parts = g_NO.split(edge, 1), x_NI.split(edge, 1)
    if _gathers(g_NO.dtype):
        beside = _Beside(x_NI)
        for row, of_row in _grouped((block.row, block) for block in blocks).items():
            turned = beside([x_parts[block.column] for block in of_row]).t() @ g_parts[row]
            for block, part in zip(of_row, turned.split([block.values.shape[1] for block in of_row]), strict=True):
                grad_values[block.slot, : part.shape[1], : part.shape[0]] = part.t()
        return
    for slot, row, column, values in blocks:
        out = grad_values[slot, : values.shape[0], : values.shape[1]]
        if out.is_contiguous():
            torch.mm(g_parts[row].t(), x_parts[column], out=out)
        else:
            out.copy_(g_parts[row].t() @ x_parts[column])


class BlockBackend(PackedBackend):
    """Blocks of weights, one product of the library an active block, or a row of them; CPU."""

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


def _gathers(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 2


def _blocks(values: Tensor, packed: Tensor, out_features: int, in_features: int) -> list[_Block]:
    """The active blocks in the order of their sites: row by row."""
    n_active, edge, _ = values.shape
    layout = Layout(out_features, in_features, n_active, edge)
    blocks = []
    for slot, (site, block) in enumerate(zip(unpack(packed, layout).tolist(), values.unbind(), strict=True)):
        row, column = divmod(site, layout.block_columns)
        height, width = out_features - row * edge, in_features - column * edge
        inside = block if height >= edge and width >= edge else block[:height, :width]
        blocks.append(_Block(slot, row, column, inside))
    return blocks


def _grouped(blocks: Iterable[tuple[int, _Block]]) -> dict[int, list[_Block]]:
    groups: dict[int, list[_Block]] = {}
    for key, block in blocks:
        groups.setdefault(key, []).append(block)
    return groups


class _Beside:
    """Puts parts of (N, ...) beside each other, always in the same memory, which grows with the widest."""

    def __init__(self, source: Tensor) -> None:
        self._room = source.new_empty(0)

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """(N, sum of their widths), good until the next call; a single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        tokens, width = parts[0].shape[0], sum(part.shape[1] for part in parts)
        if self._room.numel() < tokens * width:
            self._room = self._room.new_empty(tokens * width)
        out = self._room[: tokens * width].view(tokens, width)
        return torch.cat(parts, 1, out=out)  # type: ignore[arg-type]  # it takes any sequence


def _joined(blocks: list[Tensor], dim: int) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim)


def workspace_bytes(grad_y_or_x: Tensor, *rest: Any) -> int:
    """What an operator of this file holds beside its results in 16 bits: the inputs of a row of blocks, or of a column,
    side by side, of as many blocks as they have on average."""
    backward = isinstance(rest[-1], bool)
    x, values = rest[:2] if backward else (grad_y_or_x, rest[0])
    if not _gathers(x.dtype):
        return 0
    outputs = grad_y_or_x.shape[-1] if backward else rest[2]
    n_active, edge, _ = values.shape
    side = x.shape[-1] if backward and rest[-2] else outputs  # a column has the blocks of all rows
    return prod(x.shape[:-1]) * edge * -(-n_active // -(-side // edge)) * x.dtype.itemsize
