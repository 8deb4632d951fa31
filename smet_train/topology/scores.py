"""How much an active weight is worth keeping: a score a slot, shape (K,); the least are dropped."""

import torch
from torch import Tensor

from smet_train.sparse.sampling import random_bits


def magnitude(values: Tensor) -> Tensor:
    """|theta| (SET, RigL and SMET), of a block the sum over its values: (K,) or (G, b, b) to one number a slot."""
    absolute = values.detach().abs()
    return (
        absolute if values.dim() == 1 else absolute.sum((1, 2), dtype=torch.promote_types(values.dtype, torch.float32))
    )


def soft_magnitude(values: Tensor, temperature: float, key: int) -> Tensor:
    """log|theta| / temperature plus Gumbel noise, fp64: keeping the highest samples weights without replacement in
    proportion to |theta|^(1/temperature) (Kool, van Hoof and Welling, arXiv 1903.06059). A zero is dropped first.

    The noise is a function of ``key`` and the slot.
    """
    uniform = (random_bits(values.shape[0], key, values.device).bitwise_and((1 << 53) - 1).double() + 0.5) / 2**53
    return magnitude(values).double().log() / temperature - (-uniform.log()).log()


def magnitude_and_gradient(values: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """|theta| + weight |dL/dtheta| (MEST, arXiv 2110.14032, section 3.1)."""
    return magnitude(values) + weight * magnitude(gradient)
