"""The oracle: scatter the values into a dense weight, multiply, and let autograd do the rest. Runs everywhere.

Autograd keeps the dense weight for the backward pass, so this backend saves no memory. It exists to be obviously
right: the other backends are tested against it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from smet_train.sparse.dense import scatter_dense
from smet_train.sparse.index import unpack
from smet_train.sparse.layout import Layout


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The packed index, and the shape that it is of."""

    packed: Tensor
    layout: Layout


class ReferenceBackend:
    """Scatters the values into a dense weight and leaves the rest to autograd: what the others are tested against."""

    name = "reference"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:  # noqa: ARG002
        """Nothing: it computes every layout on every device."""
        return None

    def plan(self, packed: Tensor, layout: Layout) -> ReferencePlan:
        """Keep the packed index as it is."""
        return ReferencePlan(packed, layout)

    def matmul(self, x_NI: Tensor, values: Tensor, plan: ReferencePlan) -> Tensor:
        """y of shape (N, O) for x of shape (N, I); autograd keeps the dense weight for the backward pass."""
        return F.linear(x_NI, scatter_dense(values, unpack(plan.packed, plan.layout), plan.layout))
