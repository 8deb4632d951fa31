"""Bytes without the bits that say nothing: bitmaps of a low density and ages, coded for a checkpoint.

A bitmap at density 0.1 holds 0.47 bits of information a bit, and ages are mostly the same few numbers. Both are coded
by Huffman's code for bytes alone (zlib's, without its search for repetitions, of which there are none): within 3 % of
what is possible, and faster.
"""

import json
import math
import operator
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

CODED = "coded"  # in the metadata of a safetensors file: type and shape of each tensor that is held coded
_BYTES = {"U8": torch.uint8, "I8": torch.int8}
_SAMPLE_BYTES = 1 << 16
_MOST_VALUES_A_BYTE = 8  # Huffman's code takes a bit or more for each
_CODE_HEAD_BYTES = 64  # of a code: its frame and its table
_WORTH_IT = 0.75  # fp8 moments and random states shrink by less, and their coding would take as long


def code(tensor: Tensor) -> bytes | None:
    """The coded content of a tensor, or None where coding saves little or its values are no bytes."""
    if tensor.dtype not in _BYTES.values() or tensor.numel() == 0:
        return None
    content = memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    sample = content[:_SAMPLE_BYTES]
    if len(_huffman(sample)) > _WORTH_IT * len(sample):
        return None
    return _huffman(content)


def decode(coded: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The tensor that was coded.

    Raises:
        ValueError: if ``coded`` is no such code, or of another number of values.
    """
    n_values = math.prod(shape)
    if not 0 <= n_values <= _MOST_VALUES_A_BYTE * (coded.numel() + _CODE_HEAD_BYTES):
        raise ValueError(f"coded bytes can't hold {n_values} values, there are {coded.numel()} of them")
    try:
        content = inflated(coded.numpy().data, n_values)
    except zlib.error as error:
        raise ValueError(f"coded bytes can't be read ({error})") from error
    if len(content) != n_values:
        raise ValueError(f"coded bytes hold {len(content)} values, not {n_values}")
    return torch.frombuffer(content, dtype=torch.uint8).view(dtype).view(shape)


def inflated(coded: memoryview, at_most: int) -> bytearray:
    """What zlib made ``coded`` of, or the first ``at_most + 1`` bytes of it: no more memory is taken than that.

    Raises:
        zlib.error: if it is no whole stream of zlib's.
    """
    reader = zlib.decompressobj()
    content = bytearray(reader.decompress(coded, at_most + 1))
    if len(content) <= at_most and not reader.eof:
        raise zlib.error("incomplete or truncated stream")
    return content


def read_decoded(file: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors ``names`` of an open safetensors file, whether it holds them plain or coded.

    Raises:
        ValueError: if coded bytes can't be read.
    """
    coded = _shapes_of_coded(file)
    tensors = {name: file.get_tensor(name) for name in names}
    for name in tensors.keys() & coded.keys():
        dtype, shape = coded[name]
        if tensors[name].dtype != torch.uint8:
            raise ValueError(f"{name} is coded, but is not of bytes")
        tensors[name] = decode(tensors[name], shape, dtype)
    return tensors


def _shapes_of_coded(file: Any) -> dict[str, tuple[torch.dtype, list[int]]]:
    try:
        listed = json.loads((file.metadata() or {}).get(CODED, "{}"))
        found = {str(name): (_BYTES[dtype], [*map(operator.index, shape)]) for name, (dtype, shape) in listed.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"what it says of its coded tensors can't be read ({error})") from error
    if any(size < 0 for _, shape in found.values() for size in shape):
        raise ValueError("a coded tensor has a negative size")
    return found


def _huffman(content: memoryview) -> bytes:
    coder = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(content) + coder.flush()
