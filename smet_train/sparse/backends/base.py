"""What every compute backend answers: can you, how will you, and the product itself."""

from typing import Any, Protocol

import torch
from torch import Tensor

from smet_train.sparse.layout import Layout


class Backend(Protocol):
    """Computes y = x W^T for a weight that exists only as active values.

    Shapes: N tokens (any leading dimensions), I in, O out, K active values.
    """

    name: str

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:
        """None if this backend can compute such a layer, else the reason why not, in words for the log."""
        ...

    def plan(self, index_K: Tensor, layout: Layout) -> Any:
        """What is worth working out once per topology; passed to every ``matmul`` until the topology moves."""
        ...

    def matmul(self, x_NI: Tensor, values_K: Tensor, plan: Any) -> Tensor:
        """y of shape (..., O), differentiable in ``x_NI`` and ``values_K`` only; both have the same dtype."""
        ...
