"""One pass over parameter, gradient and moments, compiled for this machine's CPU by numba.

Torch's operations would read and write each of them several times, and the step is bound by memory. Every element is
computed by itself, so the number of threads changes no bit.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from smet_train.sparse.compiled import MATH

Array = NDArray[Any]

CHUNK = 512  # elements whose factors and copies stay in the first cache


@njit(parallel=True, fastmath=MATH, error_model="numpy", cache=True)
def update(
    parameter_N: Array, gradient_N: Array, m_N: Array, v_N: Array, ages: Array, pairs: Array, constants: Array
) -> None:  # pragma: no cover
    """AdamW in place on flat arrays of one floating-point type.

    Args:
        ages: (slots,) uint8, a slot N / slots elements; or empty, then all have the factors of age 0.
        pairs: (ages,) numerator and inverse root of each age, side by side in one number, which one load then fetches.
        constants: 1 - b1, b2, 1 - b2, eps, -lr, -lr * weight_decay.
    """
    for number in prange((len(m_N) + CHUNK - 1) // CHUNK):
        first = number * CHUNK
        last = min(first + CHUNK, len(m_N))
        found = np.empty(CHUNK, pairs.dtype)
        _look_up(ages, pairs, first, last, len(m_N), found)
        factors = found.view(m_N.dtype)
        _update_chunk(
            parameter_N[first:last], gradient_N[first:last], m_N[first:last], v_N[first:last], factors, constants
        )


@njit(parallel=True, fastmath=MATH, error_model="numpy", cache=True)
def update_bf16(
    parameter_N: Array, gradient_N: Array, m_N: Array, v_N: Array, ages: Array, pairs: Array, constants: Array, key: int
) -> None:  # pragma: no cover
    """As ``update``, for patterns of bf16 (uint16) with moments in fp32; rounds stochastically.

    The noise is that of ``rounding.round_stochastic``: bits of splitmix64 at the element's position, from ``key``.
    """
    for number in prange((len(m_N) + CHUNK - 1) // CHUNK):
        first = number * CHUNK
        last = min(first + CHUNK, len(m_N))
        count = last - first
        found = np.empty(CHUNK, pairs.dtype)
        _look_up(ages, pairs, first, last, len(m_N), found)
        factors = found.view(m_N.dtype)
        patterns = np.empty((2, CHUNK), np.uint32)
        for i in range(count):
            patterns[0, i] = np.uint32(parameter_N[first + i]) << np.uint32(16)
            patterns[1, i] = np.uint32(gradient_N[first + i]) << np.uint32(16)
        exact = patterns.view(np.float32)
        _update_chunk(exact[0, :count], exact[1, :count], m_N[first:last], v_N[first:last], factors, constants)
        for i in range(count):
            if np.isfinite(exact[0, i]):
                z = np.uint64(first + i) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
                patterns[0, i] += np.uint32(z & np.uint64(0xFFFF))
            elif np.isnan(exact[0, i]):
                patterns[0, i] = np.uint32(0x7FC00000)  # cutting a NaN off could leave an infinity
            parameter_N[first + i] = np.uint16(patterns[0, i] >> np.uint32(16))


@njit(fastmath=MATH, error_model="numpy", cache=True)
def _look_up(ages: Array, pairs: Array, first: int, last: int, elements: int, found: Array) -> None:  # pragma: no cover
    """Fill ``found`` (CHUNK,) with the pairs of the elements ``first`` to ``last``."""
    if len(ages) == elements:
        count = last - first
        eights = ages[first : first + count // 8 * 8].view(np.uint64)
        for i in range(len(eights)):  # eight ages in one load
            eight = eights[i]
            for j in range(8):
                found[8 * i + j] = pairs[(eight >> np.uint64(8 * j)) & np.uint64(255)]
        for i in range(8 * len(eights), count):
            found[i] = pairs[ages[first + i]]
        return
    size = elements // max(1, len(ages))
    start = first
    while start < last:
        pair = pairs[ages[start // size]] if len(ages) else pairs[0]
        end = min(last, (start // size + 1) * size) if len(ages) else last
        found[start - first : end - first] = pair
        start = end


@njit(fastmath=MATH, error_model="numpy", cache=True)
def _update_chunk(
    parameter_N: Array, gradient_N: Array, m_N: Array, v_N: Array, factors: Array, constants: Array
) -> None:  # pragma: no cover
    rate1, beta2, rate2, eps, minus_lr, minus_decay = constants
    for i in range(len(m_N)):
        gradient = gradient_N[i]
        m = m_N[i] + rate1 * (gradient - m_N[i])
        v = v_N[i] * beta2 + gradient * gradient * rate2
        m_N[i] = m
        v_N[i] = v
        change = minus_lr * (factors[2 * i] * (m / (np.sqrt(v) * factors[2 * i + 1] + eps)))
        parameter_N[i] += change + minus_decay * parameter_N[i]
