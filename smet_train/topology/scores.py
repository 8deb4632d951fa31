"""How much an active weight is worth keeping: a score a slot, shape (K,); the least are dropped."""

from torch import Tensor


def magnitude(values_K: Tensor) -> Tensor:
    """|theta| (SET, RigL and SMET)."""
    return values_K.detach().abs()
