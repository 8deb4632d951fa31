"""Block-sparse products for GPUs: y = x W^T, dL/dx = dL/dy W, and dL/dvalues of the active blocks alone.

Each program makes one tile of an output that no other program touches, in fp32, so results do not depend on the order
in which programs run. ``TOKENS`` rows of x at a time; blocks are ``BLOCK`` x ``BLOCK``, row by row in ``values``.
``WIDEN`` is for Triton's interpreter, which takes bf16 for integers in a product; the sums are the same.
"""

import triton
import triton.language as tl


@triton.jit
def forward(
    x, values, y, starts, columns, n_tokens, inputs, outputs,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # pragma: no cover  # fmt: skip
    """y (N, O): a tile of tokens for one row of blocks, whose slots are ``starts[row]`` to ``starts[row + 1]``."""
    tokens = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    row = tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((TOKENS, BLOCK), tl.float32)
    for slot in range(tl.load(starts + row), tl.load(starts + row + 1)):
        features = tl.load(columns + slot) * BLOCK + lane
        inside = (tokens[:, None] < n_tokens) & (features[None, :] < inputs)
        x_tile = tl.load(x + tokens[:, None] * inputs + features[None, :], mask=inside, other=0.0)
        turned = tl.load(values + slot * BLOCK * BLOCK + lane[None, :] * BLOCK + lane[:, None])
        if WIDEN:
            x_tile, turned = x_tile.to(tl.float32), turned.to(tl.float32)
        total = tl.dot(x_tile, turned, total, input_precision=PRECISION)
    features = row * BLOCK + lane
    inside = (tokens[:, None] < n_tokens) & (features[None, :] < outputs)
    tl.store(y + tokens[:, None] * outputs + features[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_of_x(
    grad_y, values, grad_x, starts, order, rows, n_tokens, inputs, outputs,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # pragma: no cover  # fmt: skip
    """grad_x (N, I): a tile of tokens for one column of blocks, whose slots are ``order[starts[column]]`` and on."""
    tokens = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    column = tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((TOKENS, BLOCK), tl.float32)
    for position in range(tl.load(starts + column), tl.load(starts + column + 1)):
        slot = tl.load(order + position)
        features = tl.load(rows + slot) * BLOCK + lane
        inside = (tokens[:, None] < n_tokens) & (features[None, :] < outputs)
        g_tile = tl.load(grad_y + tokens[:, None] * outputs + features[None, :], mask=inside, other=0.0)
        block = tl.load(values + slot * BLOCK * BLOCK + lane[:, None] * BLOCK + lane[None, :])
        if WIDEN:
            g_tile, block = g_tile.to(tl.float32), block.to(tl.float32)
        total = tl.dot(g_tile, block, total, input_precision=PRECISION)
    features = column * BLOCK + lane
    inside = (tokens[:, None] < n_tokens) & (features[None, :] < inputs)
    tl.store(grad_x + tokens[:, None] * inputs + features[None, :], total.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def backward_of_values(
    grad_y, x, grad_values, rows, columns, n_tokens, inputs, outputs,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # pragma: no cover  # fmt: skip
    """grad_values (G, b, b): one active block, over all tokens; what reaches beyond W is zero."""
    slot = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    out_features, in_features = tl.load(rows + slot) * BLOCK + lane, tl.load(columns + slot) * BLOCK + lane
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for first in range(0, n_tokens, TOKENS):
        tokens = (first + tl.arange(0, TOKENS)).to(tl.int64)
        g_inside = (out_features[:, None] < outputs) & (tokens[None, :] < n_tokens)
        turned = tl.load(grad_y + tokens[None, :] * outputs + out_features[:, None], mask=g_inside, other=0.0)
        x_inside = (tokens[:, None] < n_tokens) & (in_features[None, :] < inputs)
        x_tile = tl.load(x + tokens[:, None] * inputs + in_features[None, :], mask=x_inside, other=0.0)
        if WIDEN:
            turned, x_tile = turned.to(tl.float32), x_tile.to(tl.float32)
        total = tl.dot(turned, x_tile, total, input_precision=PRECISION)
    at = slot * BLOCK * BLOCK + lane[:, None] * BLOCK + lane[None, :]
    tl.store(grad_values + at, total.to(grad_values.dtype.element_ty))
