"""Numbers that are not finite, found without temporaries."""

import torch
from torch import Tensor


def is_finite(numbers: Tensor) -> bool:
    """Whether there is neither a NaN nor an infinity: the extremes are finite if and only if all are, as NaN passes
    through both."""
    return numbers.numel() == 0 or all(bool(extreme.isfinite()) for extreme in torch.aminmax(numbers))
