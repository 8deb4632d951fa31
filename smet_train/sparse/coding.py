"""Bytes without the bits that say nothing: bitmaps of a low density and ages, coded for a checkpoint.

A bitmap at density 0.1 holds 0.47 bits of information a bit, and ages are mostly the same few numbers. Both are coded
by Huffman's code for bytes alone (zlib's, without its search for repetitions, of which there are none): within 3 % of
what is possible, and faster.
"""

import json
import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

CODED = "coded"  # in the metadata of a safetensors file: type and shape of each tensor that is held coded
_BYTES = {"U8": torch.uint8, "I8": torch.int8}
_SAMPLE_BYTES = 1 << 16
_WORTH_IT = 0.75  # fp8 moments and random states shrink by less, and their coding would take as long


def code(tensor: Tensor) -> bytes | None:
    """The coded content of a contiguous tensor on the CPU, or None where coding saves little or values are no bytes."""
    if tensor.dtype not in _BYTES.values() or tensor.numel() == 0:
        return None
    content = memoryview(tensor.detach().view(-1).view(torch.uint8).numpy().data)
    sample = content[:_SAMPLE_BYTES]
    if len(_huffman(sample)) > _WORTH_IT * len(sample):
        return None
    return _huffman(content)


def decode(coded: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The tensor that was coded.

    Raises:
        ValueError: if ``coded`` is no such code, or of another number of values.
    """
    try:
        content = bytearray(zlib.decompress(coded.numpy().data))
    except zlib.error as error:
        raise ValueError(f"coded bytes can't be read ({error})") from error
    if len(content) != math.prod(shape):
        raise ValueError(f"coded bytes hold {len(content)} values, not {math.prod(shape)}")
    return torch.frombuffer(content, dtype=torch.uint8).view(dtype).view(shape)


def decoded(name: str, held: Tensor, metadata: Mapping[str, str] | None) -> Tensor:
    """The tensor ``name`` of a safetensors file that holds it as ``held``, plain or coded as ``metadata`` says.

    Raises:
        ValueError: if coded bytes can't be read.
    """
    entry = json.loads((metadata or {}).get(CODED, "{}")).get(name)
    return held if entry is None else decode(held, entry[1], _BYTES[entry[0]])


def _huffman(content: memoryview) -> bytes:
    coder = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(content) + coder.flush()
