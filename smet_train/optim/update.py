"""The update of one parameter: compiled for CPUs where numba is, torch's operations a chunk at a time elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from smet_train.optim.fp8 import BLOCK, M_BITS, V_BITS, Fp8, rounding_noise
from smet_train.optim.rounding import round_stochastic
from smet_train.sparse.compiled import numba_is_installed, on_threads

_CHUNK = 1 << 22  # bounds the temporaries of a large parameter to a few of 16 MiB


def update(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor | Fp8,
    v: Tensor | Fp8,
    age: Tensor | None,
    table: Tensor,
    constants: Sequence[float],
    key: int,
) -> None:
    """AdamW of ``parameter``, ``m`` and ``v`` in place.

    Args:
        m: fp64 for a parameter in fp64, else fp32, or in 8 bits; ``v`` alike.
        age: (slots, 1 …) uint8 or wider, or None: all have the first factors of ``table``.
        table: (ages, 2), for each age w / (1 - b1^t) and (1 - b2^t)^-1/2, in the moments' dtype.
        constants: 1 - b1, b2, 1 - b2, eps, -lr, -lr * weight_decay.
        key: of the noise by which bf16 and moments in 8 bits are rounded.
    """
    compiled = parameter.dtype in (table.dtype, torch.bfloat16) and parameter.is_contiguous() and numba_is_installed()
    if parameter.device.type != "cpu" or not compiled:
        update_by_torch(parameter, gradient, m, v, age, table, constants, key)
    elif isinstance(m, Fp8) and isinstance(v, Fp8):
        moments = m.codes, m.exponents, v.codes, v.exponents
        adamw_fp8_(parameter, gradient, *moments, age, table, list(constants), key)
    else:
        adamw_(parameter, gradient, m, v, age, table, list(constants), key)


def _by_kernel(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    age: Tensor | None,
    table: Tensor,
    constants: Sequence[float],
    key: int,
) -> None:
    """``update`` by one compiled pass."""
    from smet_train.optim import kernels

    moments = m.view(-1).numpy(), v.view(-1).numpy()
    arrays = _arrays(parameter, gradient, m.dtype)
    with on_threads(torch.get_num_threads()):
        if parameter.dtype == torch.bfloat16:
            kernels.update_bf16(*arrays, *moments, *_factors(age, table, constants), key)
        else:
            kernels.update(*arrays, *moments, *_factors(age, table, constants))


def _by_fp8_kernel(
    parameter: Tensor,
    gradient: Tensor,
    m_codes: Tensor,
    m_exponents: Tensor,
    v_codes: Tensor,
    v_exponents: Tensor,
    age: Tensor | None,
    table: Tensor,
    constants: Sequence[float],
    key: int,
) -> None:
    """As ``_by_kernel``, with moments in 8 bits."""
    from smet_train.optim import kernels

    m = m_codes.view(-1).numpy(), m_exponents.numpy()
    v = v_codes.view(-1).numpy(), v_exponents.numpy()
    arrays = _arrays(parameter, gradient, torch.float32)
    with on_threads(torch.get_num_threads()):
        kernels.update_fp8(*arrays, m, v, *_factors(age, table, constants), key)


def _arrays(parameter: Tensor, gradient: Tensor, dtype: torch.dtype) -> tuple[Any, Any]:
    """Flat parameter and gradient as the kernels take them: patterns of bf16, or both in ``dtype``."""
    gradient = gradient.contiguous().view(-1)
    parameter = parameter.detach().view(-1)
    if parameter.dtype == torch.bfloat16:
        return parameter.view(torch.uint16).numpy(), gradient.view(torch.uint16).numpy()
    return parameter.numpy(), gradient.to(dtype).numpy()


def _factors(age: Tensor | None, table: Tensor, constants: Sequence[float]) -> tuple[Any, Any, Any]:
    """Ages, pairs of factors and constants as the kernels take them."""
    pairs = table.view(-1).numpy().view("u8" if table.dtype == torch.float32 else "c16")
    ages = (torch.empty(0, dtype=torch.uint8) if age is None else age.view(-1)).numpy()
    return ages, pairs, torch.tensor(constants, dtype=table.dtype).numpy()


# Not by ``custom_op``, whose wrappers take longer than the update of a small layer.
_REST = "Tensor? age, Tensor table, float[] constants, int key) -> ()"
torch.library.define("smet::adamw_", f"(Tensor(a!) parameter, Tensor gradient, Tensor(b!) m, Tensor(c!) v, {_REST}")
torch.library.define(
    "smet::adamw_fp8_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) m_codes, Tensor(c!) m_exponents, Tensor(d!) v_codes, "
    f"Tensor(e!) v_exponents, {_REST}",
)
torch.library.impl("smet::adamw_", "CPU", _by_kernel)
torch.library.impl("smet::adamw_fp8_", "CPU", _by_fp8_kernel)
for _operator in ("smet::adamw_", "smet::adamw_fp8_"):
    torch.library.register_fake(_operator, lambda *_: None)
adamw_ = torch.ops.smet.adamw_.default
adamw_fp8_ = torch.ops.smet.adamw_fp8_.default


def update_by_torch(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor | Fp8,
    v: Tensor | Fp8,
    age: Tensor | None,
    table: Tensor,
    constants: Sequence[float],
    key: int,
) -> None:
    """``update`` by torch's operations; temporaries are those of a chunk of slots."""
    columns = table.to(parameter.device)
    start = 0
    for rows in _chunks(parameter):
        p, ages = parameter[rows], None if age is None else age[rows]
        held = [moment.part(rows) if isinstance(moment, Fp8) else moment[rows] for moment in (m, v)]
        m_part, v_part = (part.numbers() if isinstance(part, Fp8) else part for part in held)
        change = _change(p, gradient[rows].to(table.dtype), m_part, v_part, ages, columns, constants)
        if p.dtype == torch.bfloat16:
            p.copy_(round_stochastic(change.add_(p).view(-1), key, start).view(p.shape))
        else:
            p.add_(change)
        for part, numbers, first_bit in zip(held, (m_part, v_part), (M_BITS, V_BITS), strict=True):
            if isinstance(part, Fp8):
                part.set_(numbers, rounding_noise(p.numel(), key, first_bit, p.device, start))
        start += p.numel()


def _change(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    ages: Tensor | None,
    columns: Tensor,
    constants: Sequence[float],
) -> Tensor:
    """What is added to ``p``; updates ``m`` and ``v`` in place."""
    rate1, beta2, rate2, eps, minus_lr, minus_decay = constants
    m.lerp_(g, rate1)
    v.mul_(beta2).addcmul_(g, g, value=rate2)
    if ages is None:
        numerator, inverse_root = columns[0]
    else:
        slot_ages = ages.flatten().int()
        numerator, inverse_root = (columns[:, i].index_select(0, slot_ages).view(ages.shape) for i in (0, 1))
    change = v.sqrt().mul_(inverse_root).add_(eps)
    torch.div(m, change, out=change)
    return change.mul_(numerator).mul_(minus_lr).add_(p, alpha=minus_decay)


def _chunks(parameter: Tensor) -> Iterator[Any]:
    """Pieces along the first dimension, which is that of the slots; all but the last are of whole blocks of moments."""
    if parameter.dim() == 0:
        yield ...
        return
    slots = parameter.shape[0]
    rows = _CHUNK * slots // max(1, parameter.numel())
    rows = max(BLOCK, rows // BLOCK * BLOCK)
    for first in range(0, slots, rows):
        yield slice(first, first + rows)
