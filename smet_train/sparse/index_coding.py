"""The index as it is stored in a file: near its entropy, and read with zlib alone.

K of S sites drawn at random can't be told in fewer than about ``log2(binomial(S, K))`` bits: 0.586 bytes a value at
density 0.1. Two forms are tried, each with zlib's Huffman coding alone and with its search for repetitions, and the
smallest is kept. The first byte says which form it is, a zlib stream follows, whose checksum finds damage:

- 0, bitmap: site s is bit ``s % 8`` (of value ``2 ** (s % 8)``) of byte ``s // 8``.
- 1, gaps: of each active site the number of inactive ones since the active site before it, as one byte below 255 after
  as many bytes 255 as 255 goes into it. So the bytes up to that of slot k add up to ``site_k - k``.
"""

import zlib

import torch
from torch import Tensor

from smet_train.errors import LayoutError
from smet_train.sparse.coding import inflated
from smet_train.sparse.index import from_bitmap, to_bitmap
from smet_train.sparse.layout import Layout

BITMAP, GAPS = 0, 1
_ESCAPE = 255
_SLACK = 1 << 10  # bytes too many that are read, to tell how many sites they mark
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)


def encode_sites(index_K: Tensor, layout: Layout) -> Tensor:
    """The active sites of ``layout``, ascending, as a uint8 tensor of one dimension, on the CPU."""
    index_K = index_K.cpu().long()
    codes = [
        bytes([form]) + _compress(plain, strategy)
        for form, plain in ((BITMAP, to_bitmap(index_K, layout.sites)), (GAPS, _to_gaps(index_K)))
        for strategy in _STRATEGIES
    ]
    return _to_tensor(min(codes, key=len))


def decode_sites(code: Tensor, layout: Layout) -> Tensor:
    """What :func:`encode_sites` was given, of ``layout.index_dtype``.

    Raises:
        LayoutError: if ``code`` is damaged, or is no index of ``layout``.
    """
    what = f"the stored index of a {layout.shape_text} layer"
    if code.dtype != torch.uint8 or code.dim() != 1 or not code.numel() or int(code[0]) not in (BITMAP, GAPS):
        raise LayoutError(f"{what} is none: it must be bytes that begin with {BITMAP} or {GAPS}")
    is_bitmap = int(code[0]) == BITMAP
    most = _SLACK + (-(-layout.sites // 8) if is_bitmap else layout.n_active + layout.sites // _ESCAPE)
    try:
        plain = _to_tensor(inflated(code[1:].cpu().contiguous().numpy().data, most))
    except zlib.error as error:
        raise LayoutError(f"{what} is damaged ({error})") from error
    if plain.numel() > most:
        raise LayoutError(f"{what} is longer than one of {layout.n_active} of {layout.sites} sites can be")
    sites = from_bitmap(plain) if is_bitmap else _from_gaps(plain)
    if sites.numel() != layout.n_active:
        raise LayoutError(f"{what} marks {sites.numel()} of {layout.sites} sites, not {layout.n_active}")
    if int(sites[-1]) >= layout.sites:
        raise LayoutError(f"{what} reaches outside 0..{layout.sites - 1}: the last is site {int(sites[-1])}")
    return sites.to(layout.index_dtype)


def _compress(plain: Tensor, strategy: int) -> bytes:
    stream = zlib.compressobj(level=9, memLevel=9, strategy=strategy)
    return stream.compress(plain.numpy().data) + stream.flush()


def _to_tensor(content: bytes | bytearray) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _to_gaps(index_K: Tensor) -> Tensor:
    gaps_K = torch.diff(index_K, prepend=index_K.new_full((1,), -1)) - 1
    ends_K = (gaps_K // _ESCAPE + 1).cumsum(0) - 1
    plain = torch.full((int(ends_K[-1]) + 1,), _ESCAPE, dtype=torch.uint8)
    plain[ends_K] = (gaps_K % _ESCAPE).to(torch.uint8)
    return plain


def _from_gaps(plain: Tensor) -> Tensor:
    inactive_K = plain.cumsum(0, dtype=torch.int64)[plain != _ESCAPE]
    return inactive_K + torch.arange(inactive_K.numel())
