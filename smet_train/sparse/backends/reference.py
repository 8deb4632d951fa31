"""The oracle: scatter the values into a dense weight, multiply, and let autograd do the rest. Runs everywhere.

Autograd keeps the dense weight for the backward pass, so this backend saves no memory. It exists to be obviously
right: the other backends are tested against it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from smet_train.sparse.layout import Layout


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    index_K: Tensor
    layout: Layout


class ReferenceBackend:
    name = "reference"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:  # noqa: ARG002
        return None

    def plan(self, index_K: Tensor, layout: Layout) -> ReferencePlan:
        return ReferencePlan(index_K, layout)

    def matmul(self, x_NI: Tensor, values_K: Tensor, plan: ReferencePlan) -> Tensor:
        layout = plan.layout
        weight = values_K.new_zeros(layout.sites).index_put((plan.index_K.long(),), values_K)
        return F.linear(x_NI, weight.view(layout.out_features, layout.in_features))
