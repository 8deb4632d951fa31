"""Moments in 8 bits: small floats under an exponent that blocks of 64 neighbours share.

Dettmers et al. (arXiv 2110.02861) hold moments as codes of a non-linear table under a scale for each block, so that
one outlier spoils its block alone. Here a code is the upper end of an fp32 pattern, three bits of fraction below the
exponent, counted from the bottom of its block's range; the block's scale is the exponent of its largest number:

    exp_avg     sign, 4 bits of exponent, 3 of fraction: 15 octaves below the block's largest, then zero
    exp_avg_sq  5 bits of exponent, 3 of fraction: 31 octaves, and never zero but for zero itself

Zero has the code 0. Neighbouring numbers are an eighth to a sixteenth apart. As scales are powers of two, a number that
has a code in one block has the same value in another: slots can move between blocks without loss.

Rounding is stochastic, from the noise of :mod:`smet_train.optim.rounding`, so that the mean of many steps is that of
fp32: 0.999 v, rounded to the nearest, would stay v for ever. What is left of v is never rounded to zero, since
m / sqrt(v) would have nothing to divide by: below its range v is rounded up.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.sampling import random_bits

BLOCK = 64
LEAST_VALUES = 4096  # parameters with fewer keep fp32, as in the paper: they are many layers' least and most delicate
SHIFT = 20  # of the bits of an fp32 pattern that are rounded off
NEAREST = 1 << (SHIFT - 1)
M_BITS, V_BITS = 16, 36  # where the noise of either moment begins in 64 random bits; bf16 values take the first 16
OCTAVES = {True: 15, False: 31}  # of signed and of unsigned codes
EXPONENT = "_exponent"  # the key of a state's exponents, behind the key of its codes
_SIGN, _NUMBER, _NAN = 1 << 7, (1 << 31) - 1, 0x7FC00000


@dataclass(frozen=True, slots=True)
class Fp8:
    """``codes``, uint8 of any shape, and ``exponents``, one uint8 for each 64 of them in their flat order."""

    codes: Tensor
    exponents: Tensor
    signed: bool

    @staticmethod
    def zeros(like: Tensor, *, signed: bool) -> "Fp8":
        """Zeros of the shape of ``like``."""
        codes = torch.zeros(like.shape, dtype=torch.uint8, device=like.device)
        blocks = -(-like.numel() // BLOCK)
        return Fp8(codes, torch.zeros(blocks, dtype=torch.uint8, device=like.device), signed)

    def part(self, rows: slice) -> "Fp8":
        """A piece along the first dimension, which must begin where a block does; shares memory."""
        codes = self.codes[rows]
        first = rows.start * (self.codes.numel() // max(1, self.codes.shape[0])) // BLOCK
        return Fp8(codes, self.exponents[first : first + -(-codes.numel() // BLOCK)], self.signed)

    def numbers(self) -> Tensor:
        """The moments themselves, in fp32."""
        codes = self.codes.flatten().int()
        size = codes & (_SIGN - 1) if self.signed else codes
        pattern = torch.where(size > 0, (size + _spread(_bottom(self.exponents, self.signed), size)) << SHIFT, 0)
        if self.signed:
            pattern |= codes >> 7 << 31
        return pattern.view(torch.float32).view(self.codes.shape)

    def set_(self, numbers: Tensor, noise: Tensor | int = NEAREST) -> None:
        """Take over ``numbers`` (fp32), rounded by ``noise``, (numel,) of uniform integers below 2^20."""
        pattern = numbers.flatten().view(torch.int32)
        size = (pattern & _NUMBER).clamp(max=_NAN)
        rounded = (size + noise) >> SHIFT
        blocks = torch.nn.functional.pad(rounded, (0, -rounded.numel() % BLOCK)).view(-1, BLOCK)
        self.exponents.copy_(blocks.amax(1) >> 3)
        bottom = _spread(_bottom(self.exponents, self.signed), size)
        codes = rounded - bottom
        if self.signed:
            least = (bottom + 1) << SHIFT  # below it, zero or this, with the probability that keeps the mean
            kept = least.view(torch.float32) * (noise * 2.0**-SHIFT) < size.view(torch.float32)
            codes = torch.where(size < least, kept.int(), codes) | (pattern >> 24 & _SIGN)
        else:
            codes = torch.where(size > 0, codes.clamp(min=1), 0)
        self.codes.copy_(codes.view(self.codes.shape))


def _bottom(exponents: Tensor, signed: bool) -> Tensor:
    """For each block the upper bits of the pattern whose code would be 0."""
    return (exponents.int() - OCTAVES[signed]).clamp(min=0) << 3


def _spread(blocks: Tensor, like: Tensor) -> Tensor:
    """What holds for a block, (blocks,), at each of its numbers, (numel,)."""
    return blocks.repeat_interleave(BLOCK)[: like.numel()]


def rounding_noise(n: int, key: int, first_bit: int, device: torch.device, start: int) -> Tensor:
    """20 random bits for each of ``n`` numbers from position ``start`` on, int32."""
    return (random_bits(n, key, device, start) >> first_bit & ((1 << SHIFT) - 1)).int()


def moment(state: MutableMapping[str, Any], key: str) -> Tensor | Fp8:
    """``exp_avg`` or ``exp_avg_sq`` of an optimizer's state, however it is held."""
    exponents = state.get(key + EXPONENT)
    return state[key] if exponents is None else Fp8(state[key], exponents, signed=key == "exp_avg")


def slot_keys(state: MutableMapping[str, Any]) -> list[str]:
    """The tensors of a parameter's optimizer state that are held per slot, or should be."""
    return [
        key
        for key, value in state.items()
        if isinstance(value, Tensor) and value.dim() > 0 and not key.endswith(EXPONENT)
    ]


def read_slots(state: MutableMapping[str, Any], key: str) -> Tensor:
    """What a state holds per slot, as numbers."""
    held = moment(state, key)
    return held.numbers() if isinstance(held, Fp8) else held


def write_slots(state: MutableMapping[str, Any], key: str, numbers: Tensor) -> None:
    """Put ``numbers`` in the place of what a state holds per slot, in place unless their count has changed.

    Codes that fit the range of their new block keep their value; others are rounded to the nearest.
    """
    held = moment(state, key)
    if isinstance(held, Fp8):
        if numbers.shape != held.codes.shape:
            held = Fp8.zeros(numbers, signed=held.signed)
            state[key], state[key + EXPONENT] = held.codes, held.exponents
        held.set_(numbers)
    elif numbers.shape != held.shape:
        state[key] = numbers
    else:
        held.copy_(numbers)
