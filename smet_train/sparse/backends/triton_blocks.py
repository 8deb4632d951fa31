"""Blocks of weights on a GPU, by kernels of our own: work in proportion to the density, and no dense gradient.

Without a GPU the kernels run under Triton's interpreter (``TRITON_INTERPRET=1``), for tests.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from smet_train.sparse.backends.operators import PackedBackend, differentiate, room_for
from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout

_EDGES = (16, 32, 64, 128)
_MOST_VALUES = 2**31  # positions in the values are 32-bit integers


def interpreted() -> bool:
    """Whether Triton was told to run kernels without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.library.custom_op("smet::triton_linear", mutates_args=())
def triton_linear(x: Tensor, values: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """y = x W^T, (..., I) to (..., O), of blocks ``values`` (G, b, b) at the sites of ``packed``."""
    from smet_train.sparse.backends import triton_kernels

    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    layout = _layout(values, out_features, x.shape[-1])
    rows, columns = _places(packed, layout)
    y_NO, y = room_for(x, out_features)
    tokens = _tokens(layout.block)
    triton_kernels.forward[(-(-x_NI.shape[0] // tokens), layout.block_rows)](
        x_NI, values.contiguous(), y_NO, _starts(rows, layout.block_rows), columns,
        x_NI.shape[0], layout.in_features, out_features,
        BLOCK=layout.block, TOKENS=tokens, PRECISION=_precision(), WIDEN=interpreted(),
    )  # fmt: skip
    return y


@torch.library.custom_op("smet::triton_linear_backward", mutates_args=())
def triton_linear_backward(
    grad_y: Tensor, x: Tensor, values: Tensor, packed: Tensor, of_x: bool, of_values: bool
) -> tuple[Tensor, Tensor]:
    """(dL/dx, dL/dvalues); one that is not asked for is empty."""
    from smet_train.sparse.backends import triton_kernels

    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    g_NO = grad_y.reshape(-1, grad_y.shape[-1]).contiguous()
    layout = _layout(values, g_NO.shape[1], x_NI.shape[1])
    rows, columns = _places(packed, layout)
    sizes = x_NI.shape[0], layout.in_features, layout.out_features
    tokens = _tokens(layout.block)
    settings = {"BLOCK": layout.block, "TOKENS": tokens, "PRECISION": _precision(), "WIDEN": interpreted()}
    grad_x = torch.empty_like(x_NI if of_x else x_NI[:0])
    grad_values = values.new_empty(values.shape if of_values else (0,))
    if of_x:
        order = torch.argsort(columns, stable=True).int()
        starts = _starts(columns[order], layout.block_columns)
        triton_kernels.backward_of_x[(-(-x_NI.shape[0] // tokens), layout.block_columns)](
            g_NO, values.contiguous(), grad_x, starts, order, rows, *sizes, **settings
        )
    if of_values:
        triton_kernels.backward_of_values[(layout.n_active,)](
            g_NO, x_NI, grad_values, rows, columns, *sizes, **settings
        )
    return grad_x.view(x.shape) if of_x else grad_x, grad_values


differentiate(triton_linear, triton_linear_backward)


class TritonBackend(PackedBackend):
    """Blocks of weights by Triton kernels; on a CPU under Triton's interpreter alone."""

    operator = triton_linear
    name = "triton"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:
        """Edges without a kernel, a machine without triton, a CPU without the interpreter, other formats than fp32 and
        bf16."""
        if layout.block not in _EDGES:
            return f"its blocks have edges of {', '.join(map(str, _EDGES))}; set sparsity.block_size, or use densify"
        if find_spec("triton") is None:
            return "triton is not installed; type pip install triton"
        if device.type == "cpu" and not interpreted():
            return "its kernels are for GPUs; use block or densify"
        if dtype not in (torch.float32, torch.bfloat16):
            return "it computes in fp32 and bf16"
        if layout.n_values >= _MOST_VALUES:
            return f"it holds less than {_MOST_VALUES} values; use densify"
        return None


def _layout(values: Tensor, out_features: int, in_features: int) -> Layout:
    return Layout(out_features, in_features, values.shape[0], values.shape[1])


def _places(packed: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Block row and block column of each slot, int32; nothing is read back from the GPU."""
    sites = unpack(packed, layout)
    return (sites // layout.block_columns).int(), (sites % layout.block_columns).int()


def _starts(sorted_G: Tensor, count: int) -> Tensor:
    """Where each of ``count`` numbers begins in ``sorted_G``, and the end: (count + 1,) int32."""
    edges = torch.arange(count + 1, dtype=sorted_G.dtype, device=sorted_G.device)
    return torch.searchsorted(sorted_G, edges).int()


def _tokens(block: int) -> int:
    """Rows of x in a tile: what leaves a program's sums in registers."""
    return 64 if block == 128 else 128


def _precision() -> str:
    """Of products of fp32 numbers: torch's own setting for the GPU's matrix products."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
