"""Stochastic rounding to bf16: an update smaller than the spacing of bf16 still moves the value on average."""

import torch
from torch import Tensor

from smet_train.sparse.sampling import random_bits


def round_stochastic(exact_N: Tensor, key: int, start: int = 0) -> Tensor:
    """``exact_N`` (fp32) to bf16, up or down with the probability that makes the expectation exact.

    bf16 is the upper half of an fp32 pattern, so adding 16 random bits to the lower half and cutting it off rounds
    away from zero with probability lower / 2^16. NaN and infinity are passed through. ``start`` is the position of the
    first element in the stream of noise.
    """
    noise_N = (random_bits(exact_N.numel(), key, exact_N.device, start) & 0xFFFF).to(torch.int32)
    pattern_N = (exact_N.view(torch.int32) + noise_N) & -0x10000
    return torch.where(exact_N.isfinite(), pattern_N.view(torch.float32), exact_N).to(torch.bfloat16)
