"""Precision policies: in which dtype parameters are held and products are computed."""

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from smet_train.sparse.ledger import sparse_layers


def hold_parameters(model: nn.Module, precision: str) -> None:
    """Under ``bf16`` hold all parameters in bf16, in place; ``fp32`` and ``bf16_mixed`` keep them in fp32.

    Buffers keep their dtype: rotary frequencies in bf16 would shift positions beyond the first few hundred.
    """
    if precision == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        for layer in sparse_layers(model).values():
            layer.topology_changed()


def compute_dtype(precision: str) -> torch.dtype | None:
    """The dtype of products where it is not that of the parameters, else None."""
    return torch.bfloat16 if precision == "bf16_mixed" else None


def compute_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """``bf16_mixed``: autocast, so that products run in bf16 while parameters and reductions stay in fp32."""
    dtype = compute_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def slow_products(device: torch.device, precision: str) -> str | None:
    """Why products in bf16 cost more than in fp32 on ``device``; None if they don't, or ``precision`` is ``fp32``.

    On x86 torch hands them to oneDNN only with AVX-512, and else runs a scalar loop on one thread.
    """
    if precision == "fp32" or device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    return "this processor has no AVX-512, without which torch multiplies bf16 numbers many times slower than fp32 ones"
