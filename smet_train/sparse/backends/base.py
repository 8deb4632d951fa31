"""What every compute backend answers: can you, how will you, and the product itself."""

from typing import Any, Protocol

import torch
from torch import Tensor

from smet_train.sparse.layout import Layout


class Backend(Protocol):
    """Computes y = x W^T for a weight that exists only as active values.

    Shapes: N tokens (any leading dimensions), I in, O out; values (K,), or (G, b, b) for G active blocks of edge b.
    """

    name: str

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:
        """None if this backend can compute such a layer, else the reason why not, in words for the log."""
        ...

    def plan(self, packed: Tensor, layout: Layout) -> Any:
        """What is worth working out once per topology; passed to every ``matmul`` until the topology moves."""
        ...

    def matmul(self, x_NI: Tensor, values: Tensor, plan: Any) -> Tensor:
        """y of shape (..., O), differentiable in ``x_NI`` and ``values`` only; both have the same dtype."""
        ...
