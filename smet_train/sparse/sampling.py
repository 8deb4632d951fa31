"""Randomness as a pure function of (seed, layer, step, purpose): no generator is ever carried along.

Every process draws the same sites without talking to another, a resumed run needs no generator state, and the draw is
the same on every device, because it is integer arithmetic alone.

Distinct numbers come from a keyed pseudo-random permutation of [0, population): a balanced Feistel network on the next
even number of bits, walked along its cycle until the value falls inside (Black and Rogaway, "Ciphers with arbitrary
finite domains", CT-RSA 2002). The first n images are n distinct numbers, with no rejection list and no table.
"""

import hashlib

import torch
from torch import Tensor

from smet_train.sparse.layout import Layout

_ROUNDS = 8
_CHUNK = 1 << 20  # bounds the int64 temporaries of a draw to a few 8 MiB tensors
# Odd 64-bit multipliers of the splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014), as signed integers.
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def stream_key(seed: int, layer: str, step: int, purpose: str) -> int:
    """A 63-bit key that differs for every (seed, layer name, step, purpose)."""
    text = f"{seed}|{layer}|{step}|{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _mix(z: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64 tensors; right shifts are masked, since torch's keep the sign."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MULTIPLIER_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MULTIPLIER_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def random_bits(n: int, key: int, device: torch.device | str = "cpu", start: int = 0) -> Tensor:
    """``n`` uniform 64-bit patterns as int64: a function of ``key`` and the positions ``start .. start + n - 1``."""
    counter_N = torch.arange(start, start + n, dtype=torch.int64, device=device)
    return _mix(counter_N * _GOLDEN + key)


def key_from(key: int, start: int) -> int:
    """The key whose bits from position 0 on are those of ``key`` from ``start`` on: of a part of a tensor.

    It is that of the same 64 bits which torch and numba take for a whole number: a signed one.
    """
    moved = (key + start * _GOLDEN) % (1 << 64)
    return moved - (1 << 64) if moved >> 63 else moved


def _permute(x: Tensor, half_bits: int, round_keys: list[int]) -> Tensor:
    mask = (1 << half_bits) - 1
    left, right = x >> half_bits, x & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right + round_key) & mask)
    return (left << half_bits) | right


def draw_distinct(n: int, population: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """``n`` distinct integers of [0, population), int64, in random order: the first n images of a keyed permutation.

    Raises:
        ValueError: if ``n`` exceeds ``population``.
    """
    if n > population:
        raise ValueError(f"cannot draw {n} distinct numbers out of {population}")
    half_bits = max(1, ((population - 1).bit_length() + 1) // 2)
    round_keys = [stream_key(key, "feistel", i, "round") for i in range(_ROUNDS)]
    drawn_N = torch.empty(n, dtype=torch.int64, device=device)
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        chunk = _permute(torch.arange(start, stop, dtype=torch.int64, device=device), half_bits, round_keys)
        outside = (chunk >= population).nonzero().squeeze(1)
        while outside.numel():
            chunk[outside] = _permute(chunk[outside], half_bits, round_keys)
            outside = outside[chunk[outside] >= population]
        drawn_N[start:stop] = chunk
    return drawn_N


def inactive_sites(index_K: Tensor, ranks_N: Tensor) -> Tensor:
    """The sites of the inactive positions with the given ranks, in the order of ``ranks_N`` (int64).

    Rank r is the r-th inactive site in ascending order. The number of inactive sites before active slot k is
    ``index[k] - k``, which never falls, so a binary search finds how many active sites lie before the wanted one; no
    dense mask is made.
    """
    inactive_before_K = index_K.long() - torch.arange(index_K.numel(), device=index_K.device)
    return ranks_N + torch.searchsorted(inactive_before_K, ranks_N, right=True)


def first_index(layout: Layout, key: int, device: torch.device | str = "cpu") -> Tensor:
    """A uniformly random first topology of exactly ``layout.n_active`` sites, sorted, shape (K,).

    On the meta device, where a model is planned and not trained, no sites are drawn.
    """
    if torch.device(device).type == "meta":
        return torch.empty(layout.n_active, dtype=layout.index_dtype, device=device)
    sites = draw_distinct(layout.n_active, layout.sites, key, device)
    return sites.sort().values.to(layout.index_dtype)
