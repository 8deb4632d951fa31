"""The index as it is held: in the smallest of three forms, one tensor a layer.

- ``sites``: the site of every slot, in 16 bits where they fit, else in 32 or 64.
- ``columns``: the column of every slot in 16 bits, then the end of every row in 32; the smallest below a density
  of about 1/16 in large layers.
- ``bitmap``: one bit a site, whatever the density.

A layer computes with sites (or with columns and row ends); what :func:`unpack` makes of the held form lives as long as
one product or one topology update. Unsigned 16-bit numbers are held as torch.int16, which every operation knows.
"""

import torch
from torch import Tensor

from smet_train.errors import LayoutError
from smet_train.sparse.layout import Layout

_UINT16_MAX = 2**16 - 1
FORMS = ("sites", "columns", "bitmap")


def form_bytes(layout: Layout) -> dict[str, int]:
    """Bytes of the index of ``layout`` in each form that can hold it."""
    site_bytes = 2 if layout.sites - 1 <= _UINT16_MAX else layout.index_dtype.itemsize
    sizes = {"sites": site_bytes * layout.n_active}
    if layout.block_columns - 1 <= _UINT16_MAX and layout.index_dtype == torch.int32:
        sizes["columns"] = 2 * layout.n_active + 4 * layout.block_rows
    sizes["bitmap"] = (layout.sites + 7) // 8
    return sizes


def choose_form(layout: Layout) -> str:
    """The smallest form; among equals the one that is computed with most directly."""
    sizes = form_bytes(layout)
    return min(sizes, key=lambda form: sizes[form])


def packed_like(layout: Layout, device: torch.device | str = "cpu") -> Tensor:
    """A tensor that can hold the packed index of ``layout``; its content is not set."""
    form, size = choose_form(layout), form_bytes(layout)
    if form == "bitmap":
        return torch.empty(size[form], dtype=torch.uint8, device=device)
    if form == "sites" and size[form] > 2 * layout.n_active:
        return torch.empty(layout.n_active, dtype=layout.index_dtype, device=device)
    return torch.empty(size[form] // 2, dtype=torch.int16, device=device)


def pack(index_K: Tensor, layout: Layout) -> Tensor:
    """The sites ``index_K``, ascending, in the form that ``layout`` asks for."""
    packed = packed_like(layout, index_K.device)
    if index_K.is_meta:
        return packed
    form = choose_form(layout)
    if form == "bitmap":
        return to_bitmap(index_K, layout.sites)
    if form == "sites":
        return index_K.to(packed.dtype)  # above 32767 the 16 bits are read as a negative number; unpack undoes it
    packed[: layout.n_active] = index_K.remainder(layout.block_columns).to(torch.int16)
    # where rows 1 to the last begin: the end of the last may be 2^31, which 32 bits can't hold
    edges = torch.arange(1, layout.block_rows, device=index_K.device) * layout.block_columns
    ends = torch.full((layout.block_rows,), layout.n_active, dtype=torch.int32, device=index_K.device)
    ends[:-1] = torch.searchsorted(index_K, edges.to(index_K.dtype))
    packed[layout.n_active :] = ends.view(torch.int16)
    return packed


def to_bitmap(index_K: Tensor, sites: int) -> Tensor:
    """Bytes in which site s is bit ``s % 8``, of value ``2 ** (s % 8)``, of byte ``s // 8``."""
    bits = torch.zeros((sites + 7) // 8 * 8, dtype=torch.uint8, device=index_K.device)
    bits[index_K.long()] = 1
    shifts = torch.arange(8, dtype=torch.uint8, device=index_K.device)
    return bits.view(-1, 8).bitwise_left_shift_(shifts).sum(1, dtype=torch.uint8)


def from_bitmap(bitmap: Tensor) -> Tensor:
    """The sites of a bitmap, ascending, in 64 bits."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bitmap.device)
    bits = bitmap.unsqueeze(1).bitwise_right_shift(shifts).bitwise_and_(1).view(torch.bool).flatten()
    return bits.nonzero().squeeze(1)


def unpack(packed: Tensor, layout: Layout) -> Tensor:
    """The active sites, ascending, shape (K,) of ``layout.index_dtype``.

    Raises:
        LayoutError: if what is packed cannot be an index of ``layout``.
    """
    expected = packed_like(layout, "meta")
    if packed.shape != expected.shape or packed.dtype != expected.dtype:
        raise LayoutError(
            f"the packed index of a {layout.shape_text} layer must be {expected.numel()} values of {expected.dtype}, "
            f"got shape {tuple(packed.shape)} of {packed.dtype}"
        )
    form = choose_form(layout)
    if form == "sites":
        return packed.int().bitwise_and_(_UINT16_MAX) if packed.dtype == torch.int16 else packed
    index_K = unpack_sites(packed, layout.n_active, layout.block_rows, layout.block_columns, form == "bitmap")
    return index_K.to(layout.index_dtype)


def check_packed(packed: Tensor, layout: Layout) -> None:
    """Check that ``packed`` is what :func:`pack` makes of a valid index of ``layout``.

    Kernels read it as it is: a column behind the last of its row would be read as a site of the next row by one, and
    as memory beyond the input by another.

    Raises:
        LayoutError: naming what does not hold.
    """
    index_K = unpack(packed, layout)
    layout.validate_index(index_K)
    if not packed.is_meta and not torch.equal(pack(index_K, layout), packed):
        raise LayoutError(f"the packed index of a {layout.shape_text} layer holds a column beyond the last")


@torch.library.custom_op("smet::unpack_sites", mutates_args=())
def unpack_sites(packed: Tensor, n_active: int, rows: int, columns: int, bitmap: bool) -> Tensor:
    """The active sites of a packed index in 32 bits, (or 64 where sites outgrow them).

    An operator of its own because the number of set bits is known, but not to whoever traces the operations.
    """
    if bitmap:
        sites = from_bitmap(packed)
        if sites.numel() != n_active or (n_active and int(sites[-1]) >= rows * columns):
            raise LayoutError(f"the bitmap of a layer marks {sites.numel()} of {rows * columns} sites, not {n_active}")
        return sites if rows * columns > 2**31 else sites.int()
    offsets, column_K = row_starts_and_columns(packed, n_active, rows)
    counts = torch.diff(offsets)
    if int(offsets[-1]) != n_active or bool((counts < 0).any()):
        raise LayoutError(f"the rows of a packed index do not end one after the other, the last at {n_active}")
    first = torch.arange(rows, dtype=torch.int32, device=packed.device) * columns
    return first.repeat_interleave(counts, output_size=n_active).add_(column_K)


@unpack_sites.register_fake
def _(packed: Tensor, n_active: int, rows: int, columns: int, bitmap: bool) -> Tensor:
    wide = bitmap and rows * columns > 2**31
    return packed.new_empty(n_active, dtype=torch.int64 if wide else torch.int32)


def row_starts_and_columns(packed: Tensor, n_active: int, rows: int) -> tuple[Tensor, Tensor]:
    """Of the form ``columns``, int32: where each row begins and the last ends (rows + 1,), and the columns (K,)."""
    ends = packed[n_active:].view(torch.int32) if n_active % 2 == 0 else packed[n_active:].clone().view(torch.int32)
    starts = torch.cat([ends.new_zeros(1), ends[:rows]])
    return starts, packed[:n_active].int().bitwise_and_(_UINT16_MAX)
