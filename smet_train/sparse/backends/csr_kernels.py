"""Products of a matrix in compressed rows with dense activations, compiled for this machine's CPU by numba.

Tokens are taken a tile at a time and turned, so that one weight multiplies consecutive numbers and a tile's inputs stay
in the cache while all rows pass over them. Tiles and lanes are fixed by the shapes and the number of threads, so a
result is always the same bits on one machine.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smet_train.sparse.compiled import MATH
from smet_train.sparse.index import choose_form, unpack
from smet_train.sparse.kernel_cache import kernel, prange
from smet_train.sparse.layout import Layout

Array = NDArray[Any]

TILE_TOKENS = 256
_STRIP = 16  # rows or columns that are turned at a time: a cache line of fp32
MAX_LANES = 8


def array_of(tensor: Tensor) -> Array:
    """``tensor``, whose memory may be taken away and given back later, as that of a sharded parameter is.

    ``Tensor.numpy`` would forbid that for good.
    """
    return np.from_dlpack(tensor.detach().contiguous())


def compressed_rows(packed: Tensor, layout: Layout) -> tuple[Any, Any]:
    """Where each row begins and the last ends (O + 1,) int32, and each slot's column (K,), as numpy arrays."""
    form, n = choose_form(layout), layout.n_active
    if form == "columns":
        ends = packed[n:].clone().view(torch.int32)
        return torch.cat([ends.new_zeros(1), ends]).numpy(), array_of(packed[:n]).view(np.uint16)
    if form == "bitmap":
        starts = np.empty(layout.out_features + 1, np.int32)
        columns = np.empty(n, np.uint16 if layout.in_features <= 2**16 else np.int32)
        rows_of_bitmap(array_of(packed), layout.out_features, layout.in_features, starts, columns)
        return starts, columns
    sites = unpack(packed, layout)
    edges = torch.arange(layout.out_features + 1, dtype=torch.int64) * layout.in_features
    return torch.searchsorted(sites.long(), edges).int().numpy(), sites.remainder(layout.in_features).int().numpy()


@kernel(parallel=True, fastmath=MATH)
def rows_of_bitmap(bits: Array, rows: int, columns: int, starts: Array, column_K: Array) -> None:  # pragma: no cover
    """Fill ``starts`` (rows + 1,) and ``column_K`` (K,) from one bit a site."""
    for row in prange(rows):
        count, site, end = 0, row * columns, (row + 1) * columns
        while site < end:
            if site & 7 == 0 and site + 8 <= end:
                byte = bits[site >> 3]
                byte = (byte & 0x55) + ((byte >> 1) & 0x55)
                byte = (byte & 0x33) + ((byte >> 2) & 0x33)
                count += (byte & 0x0F) + (byte >> 4)
                site += 8
            else:
                count += (bits[site >> 3] >> (site & 7)) & 1
                site += 1
        starts[row + 1] = count
    starts[0] = 0
    for row in range(rows):
        starts[row + 1] += starts[row]
    for row in prange(rows):
        found, count, site = np.empty(columns + 1, column_K.dtype), 0, row * columns
        for column in range(columns):  # every column is written, and kept if its bit moves the end: no branch
            found[count] = column
            count += (bits[site >> 3] >> (site & 7)) & 1
            site += 1
        column_K[starts[row] : starts[row + 1]] = found[:count]


def turned(starts: Array, column_K: Array, value_K: Array, columns: int) -> tuple[Array, Array, Array]:
    """W^T in compressed rows, (starts (columns + 1,), rows of W (K,), values (K,)), of W in compressed rows."""
    starts_T, turned_K = np.zeros(columns + 1, np.int32), np.empty_like(value_K)
    row_K = np.empty(len(value_K), np.uint16 if len(starts) <= 2**16 + 1 else np.int32)
    _fill_turned(starts, column_K, value_K, starts_T, row_K, turned_K)
    return starts_T, row_K, turned_K


@kernel()
def _fill_turned(
    starts: Array, column_K: Array, value_K: Array, starts_T: Array, row_K: Array, turned_K: Array
) -> None:  # pragma: no cover
    for column in column_K:
        starts_T[column + 1] += 1
    for column in range(len(starts_T) - 1):
        starts_T[column + 1] += starts_T[column]
    free = starts_T[:-1].copy()
    for row in range(len(starts) - 1):
        for slot in range(starts[row], starts[row + 1]):
            place = free[column_K[slot]]
            row_K[place], turned_K[place] = row, value_K[slot]
            free[column_K[slot]] = place + 1


@kernel(parallel=True, fastmath=MATH)
def multiply(
    x_NI: Array, starts: Array, column_K: Array, value_K: Array, y_NO: Array, tile: int
) -> None:  # pragma: no cover
    """y = x W^T."""
    tokens, inputs = x_NI.shape
    for number in prange((tokens + tile - 1) // tile):
        first = number * tile
        count = min(tile, tokens - first)
        x_IT = np.zeros((inputs, tile), x_NI.dtype)
        _turn(x_NI, first, 0, count, inputs, x_IT, 0, 0)
        _product(x_IT, starts, column_K, value_K, y_NO, first, count)


@kernel(parallel=True, fastmath=MATH)
def multiply_backward(
    grad_y_NO: Array,
    x_NI: Array,
    starts: Array,
    column_K: Array,
    turned_W: tuple[Array, Array, Array],
    grad_x_NI: Array,
    partial_LK: Array,
    tile: int,
) -> None:  # pragma: no cover
    """grad_x = grad_y W if ``grad_x_NI`` is not empty, and the gradient of each value if ``partial_LK`` is not.

    Each of the L lanes takes every L-th part of the tiles and its own row of ``partial_LK``; their sum is the gradient.
    ``turned_W`` is W^T as ``turned`` gives it: a sum is then finished before the next begins.
    """
    tokens, outputs = grad_y_NO.shape
    lanes, inputs = partial_LK.shape[0], x_NI.shape[1]
    tiles = (tokens + tile - 1) // tile
    for lane in prange(lanes):
        x_IT = np.zeros((inputs if partial_LK.shape[1] else 0, tile), grad_y_NO.dtype)
        g_OT = np.zeros((outputs, tile), grad_y_NO.dtype)
        for number in range(lane * tiles // lanes, (lane + 1) * tiles // lanes):
            first = number * tile
            count = min(tile, tokens - first)
            g_OT[:, count:] = 0
            _turn(grad_y_NO, first, 0, count, outputs, g_OT, 0, 0)
            if partial_LK.shape[1]:
                x_IT[:, count:] = 0
                _turn(x_NI, first, 0, count, inputs, x_IT, 0, 0)
                _sample(g_OT, x_IT, starts, column_K, partial_LK[lane], tile)
            if grad_x_NI.shape[0]:
                _product(g_OT, turned_W[0], turned_W[1], turned_W[2], grad_x_NI, first, count)


@kernel(fastmath=MATH)
def _turn(
    source: Array, row: int, column: int, height: int, width: int, turned: Array, to_row: int, to_column: int
) -> None:  # pragma: no cover
    """Write a part of ``source``, ``height`` rows of ``width``, into ``turned`` with rows and columns exchanged.

    A square of whole cache lines at a time, its loops of a fixed length, so that they are unrolled.
    """
    for i in range(0, height, _STRIP):
        for j in range(0, width, _STRIP):
            if i + _STRIP <= height and j + _STRIP <= width:
                for b in range(_STRIP):
                    for a in range(_STRIP):
                        turned[to_row + j + b, to_column + i + a] = source[row + i + a, column + j + b]
            else:
                for b in range(j, min(width, j + _STRIP)):
                    for a in range(i, min(height, i + _STRIP)):
                        turned[to_row + b, to_column + a] = source[row + a, column + b]


@kernel(fastmath=MATH)
def _product(
    x_IT: Array, starts: Array, column_K: Array, value_K: Array, y_NO: Array, first: int, count: int
) -> None:  # pragma: no cover
    """Rows ``first`` to ``first + count`` of x W^T from a tile of x; W in compressed rows."""
    outputs, tile = y_NO.shape[1], x_IT.shape[1]
    y_ST = np.empty((_STRIP, tile), x_IT.dtype)
    for strip in range(0, outputs, _STRIP):
        height = min(_STRIP, outputs - strip)
        for j in range(height):
            slot, end = starts[strip + j], starts[strip + j + 1]
            for t in range(tile):
                y_ST[j, t] = 0
            while slot + 8 <= end:  # eight weights at once: the sums are read and written an eighth as often
                v0, v1, v2, v3 = value_K[slot], value_K[slot + 1], value_K[slot + 2], value_K[slot + 3]
                v4, v5, v6, v7 = value_K[slot + 4], value_K[slot + 5], value_K[slot + 6], value_K[slot + 7]
                c0, c1, c2, c3 = column_K[slot], column_K[slot + 1], column_K[slot + 2], column_K[slot + 3]
                c4, c5, c6, c7 = column_K[slot + 4], column_K[slot + 5], column_K[slot + 6], column_K[slot + 7]
                for t in range(tile):
                    y_ST[j, t] += ((v0 * x_IT[c0, t] + v1 * x_IT[c1, t]) + (v2 * x_IT[c2, t] + v3 * x_IT[c3, t])) + (
                        (v4 * x_IT[c4, t] + v5 * x_IT[c5, t]) + (v6 * x_IT[c6, t] + v7 * x_IT[c7, t])
                    )
                slot += 8
            while slot + 4 <= end:
                v0, v1, v2, v3 = value_K[slot], value_K[slot + 1], value_K[slot + 2], value_K[slot + 3]
                c0, c1, c2, c3 = column_K[slot], column_K[slot + 1], column_K[slot + 2], column_K[slot + 3]
                for t in range(tile):
                    y_ST[j, t] += v0 * x_IT[c0, t] + v1 * x_IT[c1, t] + v2 * x_IT[c2, t] + v3 * x_IT[c3, t]
                slot += 4
            while slot < end:
                v0, c0 = value_K[slot], column_K[slot]
                for t in range(tile):
                    y_ST[j, t] += v0 * x_IT[c0, t]
                slot += 1
        _turn(y_ST, 0, 0, height, count, y_NO, first, strip)


@kernel(fastmath=MATH)
def _sample(
    g_OT: Array, x_IT: Array, starts: Array, column_K: Array, sum_K: Array, tile: int
) -> None:  # pragma: no cover
    """Add the products of a row of g and a row of x at the active sites."""
    zero = g_OT.dtype.type(0)
    for row in range(g_OT.shape[0]):
        slot, end = starts[row], starts[row + 1]
        while slot + 4 <= end:
            c0, c1, c2, c3 = column_K[slot], column_K[slot + 1], column_K[slot + 2], column_K[slot + 3]
            s0, s1, s2, s3 = zero, zero, zero, zero
            for t in range(tile):
                g = g_OT[row, t]
                s0 += g * x_IT[c0, t]
                s1 += g * x_IT[c1, t]
                s2 += g * x_IT[c2, t]
                s3 += g * x_IT[c3, t]
            sum_K[slot] += s0
            sum_K[slot + 1] += s1
            sum_K[slot + 2] += s2
            sum_K[slot + 3] += s3
            slot += 4
        while slot < end:
            c0, s0 = column_K[slot], zero
            for t in range(tile):
                s0 += g_OT[row, t] * x_IT[c0, t]
            sum_K[slot] += s0
            slot += 1


@kernel(parallel=True)
def scatter(starts: Array, column_K: Array, value_K: Array, dense_OI: Array) -> None:  # pragma: no cover
    """``dense_OI``: zero but for the values at their places."""
    for row in prange(dense_OI.shape[0]):
        dense_OI[row, :] = 0
        for slot in range(starts[row], starts[row + 1]):
            dense_OI[row, column_K[slot]] = value_K[slot]


@kernel(parallel=True)
def gather(starts: Array, column_K: Array, dense_OI: Array, value_K: Array) -> None:  # pragma: no cover
    """``value_K``: what ``dense_OI`` holds at the places."""
    for row in prange(dense_OI.shape[0]):
        for slot in range(starts[row], starts[row + 1]):
            value_K[slot] = dense_OI[row, column_K[slot]]
