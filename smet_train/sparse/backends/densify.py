"""One transient dense weight per layer: made for the forward product, thrown away, made again for the backward one.

The products are dense, so this backend is about as fast as a dense layer and no faster; what it saves is memory.
Nothing dense is saved for backward, and the dense gradient of the weight lives only until its active entries are read.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout


@dataclass(frozen=True, slots=True)
class DensifyPlan:
    packed: Tensor
    layout: Layout


class _DensifyMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, values: Tensor, plan: DensifyPlan) -> Tensor:
        ctx.save_for_backward(x_NI, values)
        ctx.plan = plan
        return x_NI @ scatter_dense(values, unpack(plan.packed, plan.layout), plan.layout).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_NI, values = ctx.saved_tensors
        plan: DensifyPlan = ctx.plan
        index_K = unpack(plan.packed, plan.layout)
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_y_NO @ scatter_dense(values, index_K, plan.layout)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_y_NO.flatten(0, -2).t() @ x_NI.flatten(0, -2)
            grad_values = gather_values(grad_weight, index_K, plan.layout)
        return grad_x, grad_values, None


class DensifyBackend:
    name = "densify"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:  # noqa: ARG002
        return None

    def plan(self, packed: Tensor, layout: Layout) -> DensifyPlan:
        return DensifyPlan(packed, layout)

    def matmul(self, x_NI: Tensor, values: Tensor, plan: DensifyPlan) -> Tensor:
        if x_NI.dim() == 1:
            return self.matmul(x_NI.unsqueeze(0), values, plan).squeeze(0)
        y: Tensor = _DensifyMatmul.apply(x_NI, values, plan)
        return y
