"""Compressed rows on a CPU: work and memory in proportion to the density; no dense weight and no dense gradient.

The operators take the packed index itself, so nothing about a topology is kept beside it.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.backends.operators import PackedBackend, differentiate, room_for
from smet_train.sparse.compiled import numba_is_installed, on_threads
from smet_train.sparse.layout import Layout

_LINE_TOKENS = 16  # tiles are whole vectors


@torch.library.custom_op("smet::csr_linear", mutates_args=(), device_types="cpu")
def csr_linear(x: Tensor, values: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """y = x W^T, (..., I) to (..., O), of values (K,) at the sites of ``packed``; in fp32, fp64 in fp64."""
    from smet_train.sparse.backends import csr_kernels

    dtype = _compute_dtype(x)
    flat = _rows(x, dtype)
    y_NO, y = room_for(x, out_features, dtype)
    factors = csr_kernels.array_of(values.to(dtype))
    with on_threads(torch.get_num_threads()):
        starts, columns = csr_kernels.compressed_rows(packed, Layout(out_features, x.shape[-1], values.numel()))
        csr_kernels.multiply(flat.numpy(), starts, columns, factors, y_NO.numpy(), _tile(flat.shape[0]))
    return y.to(x.dtype)


@torch.library.custom_op("smet::csr_linear_backward", mutates_args=(), device_types="cpu")
def csr_linear_backward(
    grad_y: Tensor, x: Tensor, values: Tensor, packed: Tensor, of_x: bool, of_values: bool
) -> tuple[Tensor, Tensor]:
    """(dL/dx, dL/dvalues); one that is not asked for is empty."""
    from smet_train.sparse.backends import csr_kernels

    dtype = _compute_dtype(x)
    grad_y_NO, x_NI = _rows(grad_y, dtype), _rows(x, dtype)
    (tokens, inputs), outputs = x_NI.shape, grad_y_NO.shape[1]
    grad_x = torch.empty(tokens if of_x else 0, inputs, dtype=dtype)
    tile = _tile(tokens)
    factors = csr_kernels.array_of(values.to(dtype))
    with on_threads(torch.get_num_threads()) as threads:
        lanes = _lanes(tokens, tile, threads)
        partial = torch.zeros(lanes, values.numel() if of_values else 0, dtype=dtype)
        starts, columns = csr_kernels.compressed_rows(packed, Layout(outputs, inputs, values.numel()))
        turned_W = csr_kernels.turned(starts, columns, factors, inputs)
        csr_kernels.multiply_backward(
            grad_y_NO.numpy(), x_NI.numpy(), starts, columns, turned_W, grad_x.numpy(), partial.numpy(), tile
        )
    grad_values = partial.sum(0).to(values.dtype)
    return grad_x.to(x.dtype).view(x.shape) if of_x else grad_x.to(x.dtype), grad_values


differentiate(csr_linear, csr_linear_backward)


class CsrBackend(PackedBackend):
    """Single values as compressed rows, by kernels that numba compiles for this CPU; no dense weight or gradient."""

    operator = csr_linear
    name = "csr"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:
        """Blocks, GPUs, whole numbers, a machine without numba."""
        if layout.block != 1:
            return f"it computes single values, not blocks of {layout.block}; use block or densify"
        if device.type not in ("cpu", "meta"):
            return "its kernels are for CPUs; use densify"
        if not dtype.is_floating_point:
            return "it multiplies floating-point numbers"
        if not numba_is_installed():
            return "numba is not installed; type pip install numba"
        return None


def _compute_dtype(x: Tensor) -> torch.dtype:
    """numba has no 16-bit floats."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).to(dtype).contiguous()


def _tile(tokens: int) -> int:
    from smet_train.sparse.backends.csr_kernels import TILE_TOKENS

    return max(_LINE_TOKENS, min(TILE_TOKENS, -(-tokens // _LINE_TOKENS) * _LINE_TOKENS))


def _lanes(tokens: int, tile: int, threads: int) -> int:
    from smet_train.sparse.backends.csr_kernels import MAX_LANES

    return max(1, min(threads, MAX_LANES, -(-tokens // tile)))


def workspace_bytes(grad_y_or_x: Tensor, *rest: Any) -> int:
    """What an operator of this file holds while it runs: its tiles, its partial sums, the columns, and W turned."""
    backward = isinstance(rest[-1], bool)
    x, values = rest[:2] if backward else (grad_y_or_x, rest[0])
    outputs = grad_y_or_x.shape[-1] if backward else _LINE_TOKENS
    tokens, width = prod(x.shape[:-1]), _compute_dtype(x).itemsize
    tile = _tile(tokens)
    lanes = _lanes(tokens, tile, torch.get_num_threads())
    tiles = lanes * tile * (x.shape[-1] + outputs) * width
    return tiles + values.numel() * (2 + (2 + width + lanes * width if backward else 0))
