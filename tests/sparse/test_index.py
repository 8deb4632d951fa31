"""The packed index: every form gives back what was packed, is as small as it says, and refuses what is not one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smet_train.errors import LayoutError
from smet_train.sparse import Layout
from smet_train.sparse.index import choose_form, form_bytes, pack, packed_like, unpack
from smet_train.sparse.sampling import first_index


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.sampled_from([1, 2, 7, 64]), st.integers(0, 2**30))
@settings(max_examples=150, deadline=None)
def test_unpacking_undoes_packing(rows: int, columns: int, density: float, block: int, key: int) -> None:
    sites = -(-rows // block) * -(-columns // block)
    layout = Layout(rows, columns, max(1, round(density * sites)), block)
    index = first_index(layout, key)
    packed = pack(index, layout)
    assert packed.numel() * packed.element_size() == min(form_bytes(layout).values())
    assert unpack(packed, layout).equal(index)
    assert unpack(packed, layout).dtype == layout.index_dtype
    assert unpack(packed, layout).data_ptr() != packed.data_ptr() or packed.dtype == layout.index_dtype


@pytest.mark.parametrize(
    ("layout", "form", "size"),
    [
        (Layout(2048, 768, 157_286), "bitmap", 2048 * 768 // 8),  # d = 0.1
        (Layout(2048, 768, 78_643), "columns", 2 * 78_643 + 4 * 2048),  # d = 0.05
        (Layout(256, 256, 3000), "sites", 6000),  # the last site is 65535
        (Layout(256, 257, 3000), "columns", 6000 + 4 * 256),
        (Layout(1, 1 << 17, 10), "sites", 40),  # a column that 16 bits can't hold
        (Layout(1 << 17, 1 << 15, 10), "sites", 80),  # a site that 32 bits can't hold
        (Layout(1 << 16, 1 << 15, 140_000), "columns", 280_000 + 4 * 65_536),  # 2^31 sites, all that 32 bits tell apart
        (Layout(2048, 2048, 102, 64), "bitmap", 128),
        (Layout(5461, 2048, 275, 64), "bitmap", 86 * 32 // 8),
        (Layout(5461, 2048, 50, 64), "sites", 100),
    ],
)
def test_the_smallest_form_is_held(layout: Layout, form: str, size: int) -> None:
    packed = packed_like(layout)
    assert (choose_form(layout), packed.numel() * packed.element_size()) == (form, size)
    index = first_index(layout, 4)
    assert unpack(pack(index, layout), layout).equal(index)


def test_the_last_site_of_the_most_that_32_bits_tell_apart() -> None:
    layout = Layout(1 << 16, 1 << 15, 140_000)
    index = first_index(layout, 4)
    index[-1] = 2**31 - 1
    assert unpack(pack(index, layout), layout).equal(index)


def test_the_highest_numbers_of_sixteen_bits_are_not_negative() -> None:
    for layout in (Layout(1, 1 << 16, 3), Layout(40, 1 << 16, 3)):
        index = torch.tensor([0, 40_000, 65_535], dtype=torch.int32)
        assert unpack(pack(index, layout), layout).tolist() == [0, 40_000, 65_535]


def test_what_is_no_index_is_refused() -> None:
    layout = Layout(2048, 768, 40_000)
    with pytest.raises(LayoutError, match=r"must be 44096 values of torch.int16, got shape \(3,\) of torch.int16"):
        unpack(torch.zeros(3, dtype=torch.int16), layout)
    with pytest.raises(LayoutError, match="rows of a packed index do not end one after the other, the last at 40000"):
        unpack(torch.zeros(44_096, dtype=torch.int16), layout)
    layout = Layout(10, 10, 50)
    with pytest.raises(LayoutError, match="the bitmap of a layer marks 0 of 100 sites, not 50"):
        unpack(torch.zeros(13, dtype=torch.uint8), layout)
    outside = pack(torch.arange(50, dtype=torch.int32), layout)
    outside[0] = 0xFE
    outside[12] = 0x10  # site 100
    with pytest.raises(LayoutError, match="marks 50 of 100 sites"):
        unpack(outside, layout)


def test_it_can_be_planned_without_numbers() -> None:
    for layout in (Layout(2048, 768, 40_000), Layout(10, 10, 50)):
        packed = packed_like(layout, "meta")
        assert unpack(packed, layout).shape == (layout.n_active,)
        torch.library.opcheck(
            torch.ops.smet.unpack_sites.default,
            (
                pack(first_index(layout, 1), layout),
                layout.n_active,
                layout.out_features,
                layout.in_features,
                choose_form(layout) == "bitmap",
            ),
        )
