"""How much an active weight is worth keeping: a score a slot, shape (K,); the least are dropped."""

from torch import Tensor

from smet_train.sparse.sampling import random_bits


def magnitude(values_K: Tensor) -> Tensor:
    """|theta| (SET, RigL and SMET)."""
    return values_K.detach().abs()


def soft_magnitude(values_K: Tensor, temperature: float, key: int) -> Tensor:
    """log|theta| / temperature plus Gumbel noise, fp64: keeping the highest samples weights without replacement in
    proportion to |theta|^(1/temperature) (Kool, van Hoof and Welling, arXiv 1903.06059). A zero is dropped first.

    The noise is a function of ``key`` and the slot.
    """
    uniform = (random_bits(values_K.numel(), key, values_K.device).bitwise_and((1 << 53) - 1).double() + 0.5) / 2**53
    return values_K.detach().double().abs().log() / temperature - (-uniform.log()).log()


def magnitude_and_gradient(values_K: Tensor, gradient_K: Tensor, weight: float) -> Tensor:
    """|theta| + weight |dL/dtheta| (MEST, arXiv 2110.14032, section 3.1)."""
    return values_K.detach().abs() + weight * gradient_K.abs()
