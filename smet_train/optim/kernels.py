"""One pass over parameter, gradient and moments, compiled for this machine's CPU by numba.

Torch's operations would read and write each of them several times, and the step is bound by memory. Every element is
computed by itself, so the number of threads changes no bit.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smet_train.optim.fp8 import BLOCK, M_BITS, OCTAVES, SHIFT, V_BITS
from smet_train.sparse.compiled import MATH
from smet_train.sparse.kernel_cache import kernel, prange

Array = NDArray[Any]

M_OCTAVES, V_OCTAVES = OCTAVES[True], OCTAVES[False]
CHUNK = 512  # a multiple of BLOCK: elements whose factors and copies stay in the first cache
SPAN = 16 * CHUNK  # what a thread takes at a time, with the same few arrays for all chunks


@kernel(parallel=True, fastmath=MATH, error_model="numpy")
def update(
    parameter_N: Array, gradient_N: Array, m_N: Array, v_N: Array, ages: Array, pairs: Array, constants: Array
) -> None:  # pragma: no cover
    """AdamW in place on flat arrays of one floating-point type.

    Args:
        ages: (slots,) whole numbers of any width, a slot N / slots elements; or empty: all have the factors of age 0.
        pairs: (ages,) numerator and inverse root of each age, side by side in one number, which one load then fetches.
        constants: 1 - b1, b2, 1 - b2, eps, -lr, -lr * weight_decay.
    """
    elements = len(m_N)
    for number in prange((elements + SPAN - 1) // SPAN):
        found = np.empty(CHUNK, pairs.dtype)
        factors = found.view(m_N.dtype)
        for first in range(number * SPAN, min((number + 1) * SPAN, elements), CHUNK):
            last = min(first + CHUNK, elements)
            _look_up(ages, pairs, first, last, elements, found)
            _update_chunk(
                parameter_N[first:last], gradient_N[first:last], m_N[first:last], v_N[first:last], factors, constants
            )


@kernel(parallel=True, fastmath=MATH, error_model="numpy")
def update_bf16(
    parameter_N: Array, gradient_N: Array, m_N: Array, v_N: Array, ages: Array, pairs: Array, constants: Array, key: int
) -> None:  # pragma: no cover
    """As ``update``, for patterns of bf16 (uint16) with moments in fp32; rounds stochastically.

    The noise is that of ``rounding.round_stochastic``: bits of splitmix64 at the element's position, from ``key``.
    """
    elements = len(m_N)
    for number in prange((elements + SPAN - 1) // SPAN):
        found = np.empty(CHUNK, pairs.dtype)
        factors = found.view(m_N.dtype)
        patterns = np.empty((2, CHUNK), np.uint32)
        exact = patterns.view(np.float32)
        noise = np.empty((3, CHUNK), np.uint32)
        for first in range(number * SPAN, min((number + 1) * SPAN, elements), CHUNK):
            last = min(first + CHUNK, elements)
            count = last - first
            _look_up(ages, pairs, first, last, elements, found)
            _widen(parameter_N[first:last], patterns[0])
            _widen(gradient_N[first:last], patterns[1])
            _update_chunk(exact[0, :count], exact[1, :count], m_N[first:last], v_N[first:last], factors, constants)
            _draw(noise, first, key)
            _narrow(exact[0], patterns[0], noise[0], parameter_N[first:last])


@kernel(parallel=True, fastmath=MATH, error_model="numpy")
def update_fp8(
    parameter_N: Array,
    gradient_N: Array,
    m: tuple[Array, Array],
    v: tuple[Array, Array],
    ages: Array,
    pairs: Array,
    constants: Array,
    key: int,
) -> None:  # pragma: no cover
    """As ``update`` for fp32, or patterns of bf16, with moments in 8 bits: (codes (N,), exponents (blocks,)) of each.

    A chunk's moments are widened, updated and rounded while they are in the first cache; see ``fp8``.
    """
    elements = len(parameter_N)
    for number in prange((elements + SPAN - 1) // SPAN):
        found = np.empty(CHUNK, pairs.dtype)
        factors = found.view(np.float32)
        codes = np.empty((2, CHUNK), np.uint8)  # whole blocks, whose loops have a fixed length
        patterns = np.empty((4, CHUNK), np.uint32)
        exact = patterns.view(np.float32)
        noise = np.empty((3, CHUNK), np.uint32)
        for first in range(number * SPAN, min((number + 1) * SPAN, elements), CHUNK):
            last = min(first + CHUNK, elements)
            count = last - first
            blocks = slice(first // BLOCK, (last + BLOCK - 1) // BLOCK)
            _look_up(ages, pairs, first, last, elements, found)
            codes[:, count:] = 0
            codes[0, :count] = m[0][first:last]
            codes[1, :count] = v[0][first:last]
            _decode(codes[0], m[1][blocks], M_OCTAVES, 127, patterns[0])
            _decode(codes[1], v[1][blocks], V_OCTAVES, 255, patterns[1])
            _draw(noise, first, key)
            if parameter_N.itemsize == 2:
                _widen(parameter_N[first:last], patterns[2])
                _widen(gradient_N[first:last], patterns[3])
                values, gradients = exact[2, :count], exact[3, :count]
                _update_chunk(values, gradients, exact[0, :count], exact[1, :count], factors, constants)
                _narrow(exact[2], patterns[2], noise[0], parameter_N[first:last])
            else:
                values, gradients = parameter_N[first:last], gradient_N[first:last]
                _update_chunk(values, gradients, exact[0, :count], exact[1, :count], factors, constants)
            _encode_m(exact[0], patterns[0], noise[1], codes[0], m[1][blocks])
            _encode_v(patterns[1], noise[2], codes[1], v[1][blocks])
            m[0][first:last] = codes[0, :count]
            v[0][first:last] = codes[1, :count]


@kernel(fastmath=MATH, error_model="numpy")
def _widen(narrow_N: Array, patterns: Array) -> None:  # pragma: no cover
    for i in range(len(narrow_N)):
        patterns[i] = np.uint32(narrow_N[i]) << np.uint32(16)


@kernel(fastmath=MATH, error_model="numpy")
def _narrow(exact: Array, patterns: Array, noise: Array, narrow_N: Array) -> None:  # pragma: no cover
    """Round ``exact``, whose bits are ``patterns``, to bf16."""
    for i in range(len(narrow_N)):
        if np.isfinite(exact[i]):
            patterns[i] += noise[i]
        elif np.isnan(exact[i]):
            patterns[i] = np.uint32(0x7FC00000)  # cutting a NaN off could leave an infinity
        narrow_N[i] = np.uint16(patterns[i] >> np.uint32(16))


@kernel(fastmath=MATH, error_model="numpy")
def _draw(noise: Array, first: int, key: int) -> None:  # pragma: no cover
    """splitmix64 at the positions from ``first`` on: 16 bits for the value, 20 for either moment."""
    for i in range(CHUNK):
        z = np.uint64(first + i) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        noise[0, i] = np.uint32(z & np.uint64(0xFFFF))
        noise[1, i] = np.uint32((z >> np.uint64(M_BITS)) & np.uint64(0xFFFFF))
        noise[2, i] = np.uint32((z >> np.uint64(V_BITS)) & np.uint64(0xFFFFF))


# What follows is ``Fp8`` in loops of 64. Every number is cast to 32 bits, or numba computes in 64 and half as fast.


@kernel(fastmath=MATH, error_model="numpy")
def _bottom(exponent: Any, octaves: int) -> Any:  # pragma: no cover
    """The upper bits of the pattern whose code would be 0."""
    return np.uint32((exponent - np.uint32(octaves)) << np.uint32(3)) if exponent > octaves else np.uint32(0)


@kernel(fastmath=MATH, error_model="numpy")
def _decode(codes: Array, exponents: Array, octaves: int, sizes: int, patterns: Array) -> None:  # pragma: no cover
    """The fp32 patterns of ``codes``, whose size is in the bits ``sizes`` and whose sign is above."""
    for block in range(len(exponents)):
        bottom = _bottom(np.uint32(exponents[block]), octaves)
        here, out = codes[block * BLOCK : (block + 1) * BLOCK], patterns[block * BLOCK : (block + 1) * BLOCK]
        for i in range(BLOCK):
            code = np.uint32(here[i])
            size = np.uint32(code & np.uint32(sizes))
            sign = np.uint32(np.uint32(code - size) << np.uint32(24))
            out[i] = np.uint32(np.uint32((size + bottom) << np.uint32(SHIFT)) | sign) if size else np.uint32(0)


@kernel(fastmath=MATH, error_model="numpy")
def _round_block(patterns: Array, noise: Array, rounded: Array) -> Any:  # pragma: no cover
    """Round the patterns of a block without their sign, into ``rounded``; the exponent of the largest."""
    largest = np.uint32(0)
    for i in range(BLOCK):
        size = np.uint32(patterns[i] & np.uint32(0x7FFFFFFF))
        size = min(size, np.uint32(0x7FC00000))  # all NaN are one
        rounded[i] = np.uint32(size + noise[i]) >> np.uint32(SHIFT)
        largest = max(largest, rounded[i])
    return np.uint32(largest >> np.uint32(3))


@kernel(fastmath=MATH, error_model="numpy")
def _encode_m(exact: Array, patterns: Array, noise: Array, codes: Array, exponents: Array) -> None:  # pragma: no cover
    """With a sign; below the range, zero or the least, with the probability that keeps the mean."""
    rounded, least = np.empty(BLOCK, np.uint32), np.empty(1, np.uint32)
    for block in range(len(exponents)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        numbers, bits, up, out = exact[part], patterns[part], noise[part], codes[part]
        exponent = _round_block(bits, up, rounded)
        exponents[block] = np.uint8(exponent)
        bottom = _bottom(exponent, M_OCTAVES)
        least[0] = np.uint32(bottom + np.uint32(1)) << np.uint32(SHIFT)
        smallest = least.view(np.float32)[0]
        step = np.float32(smallest * np.float32(2.0**-SHIFT))
        for i in range(BLOCK):
            number = abs(numbers[i])
            kept = np.uint32(1) if np.float32(np.float32(np.int32(up[i])) * step) < number else np.uint32(0)
            code = kept if number < smallest else np.uint32(rounded[i] - bottom)
            out[i] = np.uint8(code | np.uint32(np.uint32(bits[i] >> np.uint32(24)) & np.uint32(128)))


@kernel(fastmath=MATH, error_model="numpy")
def _encode_v(patterns: Array, noise: Array, codes: Array, exponents: Array) -> None:  # pragma: no cover
    """Without a sign; what is below the range is rounded up, and zero alone is zero."""
    rounded = np.empty(BLOCK, np.uint32)
    for block in range(len(exponents)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        bits, out = patterns[part], codes[part]
        exponent = _round_block(bits, noise[part], rounded)
        exponents[block] = np.uint8(exponent)
        bottom = _bottom(exponent, V_OCTAVES)
        for i in range(BLOCK):
            code = np.uint32(rounded[i] - bottom) if rounded[i] > bottom else np.uint32(1)
            out[i] = np.uint8(code) if bits[i] & np.uint32(0x7FFFFFFF) else np.uint8(0)


@kernel(fastmath=MATH, error_model="numpy")
def _look_up(ages: Array, pairs: Array, first: int, last: int, elements: int, found: Array) -> None:  # pragma: no cover
    """Fill ``found`` (CHUNK,) with the pairs of the elements ``first`` to ``last``."""
    if len(ages) == elements and ages.itemsize > 1:
        for i in range(last - first):
            found[i] = pairs[ages[first + i]]
        return
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


@kernel(fastmath=MATH, error_model="numpy")
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
