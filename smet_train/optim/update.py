"""The update of one parameter: compiled for CPUs where numba is, torch's operations a chunk at a time elsewhere."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smet_train.optim.rounding import round_stochastic
from smet_train.sparse.compiled import numba_is_installed, on_threads

_CHUNK = 1 << 22  # bounds the temporaries of a large parameter to a few of 16 MiB


def update(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    age: Tensor | None,
    table: Sequence[tuple[float, float]],
    constants: Sequence[float],
    key: int,
) -> None:
    """AdamW of ``parameter``, ``m`` and ``v`` in place.

    Args:
        m: fp64 for a parameter in fp64, else fp32; ``v`` alike.
        age: (slots, 1 …) uint8, or None: all have the first factors of ``table``.
        table: for each age, w / (1 - b1^t) and (1 - b2^t)^-1/2.
        constants: 1 - b1, b2, 1 - b2, eps, -lr, -lr * weight_decay.
        key: of the noise by which bf16 is rounded.
    """
    flat = [float(factor) for pair in table for factor in pair]
    compiled = parameter.dtype in (m.dtype, torch.bfloat16) and parameter.is_contiguous() and numba_is_installed()
    if parameter.device.type == "cpu" and compiled:
        adamw_(parameter, gradient, m, v, age, flat, list(constants), key)
    else:
        update_by_torch(parameter, gradient, m, v, age, flat, constants, key)


def _by_kernel(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    age: Tensor | None,
    table: Sequence[float],
    constants: Sequence[float],
    key: int,
) -> None:
    """``update`` by one compiled pass."""
    from smet_train.optim import kernels

    numbers = torch.tensor([*table, *constants], dtype=m.dtype).numpy()
    pairs = numbers[: len(table)].view("u8" if m.dtype == torch.float32 else "c16")
    moments = m.view(-1).numpy(), v.view(-1).numpy()
    ages = (m.new_empty(0, dtype=torch.uint8) if age is None else age.view(-1)).numpy()
    gradient = gradient.contiguous().view(-1)
    parameter = parameter.detach().view(-1)
    with on_threads(torch.get_num_threads()):
        if parameter.dtype == torch.bfloat16:
            patterns = parameter.view(torch.uint16).numpy(), gradient.view(torch.uint16).numpy()
            kernels.update_bf16(*patterns, *moments, ages, pairs, numbers[len(table) :], key)
        else:
            values = parameter.numpy(), gradient.to(m.dtype).numpy()
            kernels.update(*values, *moments, ages, pairs, numbers[len(table) :])


# Not by ``custom_op``, whose wrappers take longer than the update of a small layer.
torch.library.define(
    "smet::adamw_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) m, Tensor(c!) v, Tensor? age, float[] table, "
    "float[] constants, int key) -> ()",
)
torch.library.impl("smet::adamw_", "CPU", _by_kernel)
torch.library.register_fake("smet::adamw_", lambda *_: None)
adamw_ = torch.ops.smet.adamw_.default


def update_by_torch(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    age: Tensor | None,
    table: Sequence[float],
    constants: Sequence[float],
    key: int,
) -> None:
    """``update`` by torch's operations; temporaries are those of a chunk of slots."""
    rate1, beta2, rate2, eps, minus_lr, minus_decay = constants
    columns = torch.tensor(table, dtype=m.dtype, device=m.device).view(-1, 2)
    start = 0
    for p, g, m_part, v_part, ages in _chunks(parameter, gradient, m, v, age):
        g = g.to(m.dtype)
        m_part.lerp_(g, rate1)
        v_part.mul_(beta2).addcmul_(g, g, value=rate2)
        if ages is None:
            numerator, inverse_root = columns[0]
        else:
            slot_ages = ages.flatten().int()
            numerator, inverse_root = (columns[:, i].index_select(0, slot_ages).view(ages.shape) for i in (0, 1))
        change = v_part.sqrt().mul_(inverse_root).add_(eps)
        torch.div(m_part, change, out=change)
        change.mul_(numerator).mul_(minus_lr).add_(p, alpha=minus_decay)
        if p.dtype == torch.bfloat16:
            p.copy_(round_stochastic(change.add_(p).view(-1), key, start).view(p.shape))
        else:
            p.add_(change)
        start += p.numel()


def _chunks(
    parameter: Tensor, gradient: Tensor, m: Tensor, v: Tensor, age: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    """Pieces along the first dimension, which is that of the slots."""
    if parameter.dim() == 0:
        yield parameter, gradient, m, v, age
        return
    slots = parameter.shape[0]
    rows = max(1, _CHUNK * slots // max(1, parameter.numel()))
    for first in range(0, slots, rows):
        part = slice(first, first + rows)
        yield parameter[part], gradient[part], m[part], v[part], None if age is None else age[part]
