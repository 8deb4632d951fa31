"""A stored index is the index again, near its entropy in size, and damage is found."""

import math
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smet_train.errors import LayoutError
from smet_train.sparse import Layout
from smet_train.sparse.index_coding import BITMAP, GAPS, decode_sites, encode_sites
from smet_train.sparse.sampling import first_index


def index_of(layout: Layout) -> Tensor:
    return first_index(layout, 7, torch.device("cpu"))


def entropy_bytes(density: float) -> float:
    """Of an index drawn at random, bytes a value."""
    rest = 1 - density
    return -(density * math.log2(density) + rest * math.log2(rest)) / density / 8


@st.composite
def indices(draw: st.DrawFn) -> tuple[Layout, Tensor]:
    rows, columns, block = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.sampled_from([1, 1, 3, 16]))
    sites = -(-rows // block) * -(-columns // block)
    active = draw(st.sets(st.integers(0, sites - 1), min_size=1))
    layout = Layout(rows, columns, len(active), block)
    return layout, torch.tensor(sorted(active), dtype=layout.index_dtype)


@given(indices())
def test_what_is_decoded_is_what_was_encoded(case: tuple[Layout, Tensor]) -> None:
    layout, index = case
    code = encode_sites(index, layout)
    assert code.dtype == torch.uint8
    decoded = decode_sites(code, layout)
    assert decoded.dtype == layout.index_dtype
    assert torch.equal(decoded, index)


@pytest.mark.parametrize("block", [1, 8])
@pytest.mark.parametrize("density", [1e-5, 0.001, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_every_density_survives(density: float, block: int) -> None:
    sites = (768 // block) * (2048 // block)
    layout = Layout(768, 2048, max(1, round(density * sites)), block)
    index = index_of(layout)
    assert torch.equal(decode_sites(encode_sites(index, layout), layout), index)


@pytest.mark.parametrize(
    ("density", "fp32_ratio", "bf16_ratio"),
    [(0.05, 1.181, 1.362), (0.1, 1.149, 1.297), (0.25, 1.103, 1.205), (0.5, 1.063, 1.126)],
)
def test_values_and_index_beside_density_times_dense(density: float, fp32_ratio: float, bf16_ratio: float) -> None:
    """The measured ratio; 1.15 is out of reach at density 0.05 and for bf16 at all of these but 0.5, by entropy."""
    layout = Layout.from_density(768, 2048, density)
    index_bytes = encode_sites(index_of(layout), layout).numel()
    assert index_bytes / layout.n_active < entropy_bytes(density) * 1.015 + 0.001
    for value_bytes, bound in ((4, fp32_ratio), (2, bf16_ratio)):
        ratio = (value_bytes * layout.n_values + index_bytes) / (density * value_bytes * layout.weights)
        assert ratio <= bound
        least = 1 + entropy_bytes(density) / value_bytes
        assert (bound <= 1.15) == (least <= 1.15)


def test_an_index_of_blocks_is_next_to_nothing() -> None:
    layout = Layout.from_density(768, 2048, 0.1, 16)
    held = 4 * layout.n_values + encode_sites(index_of(layout), layout).numel()
    assert held <= 1.001 * 0.1 * 4 * layout.weights


@pytest.mark.parametrize(("density", "form"), [(0.05, GAPS), (0.7, BITMAP)])
def test_each_form_is_the_smallest_somewhere(density: float, form: int) -> None:
    layout = Layout.from_density(256, 256, density)
    assert int(encode_sites(index_of(layout), layout)[0]) == form


def coded(form: int, plain: bytes) -> Tensor:
    return torch.frombuffer(bytearray([form]) + zlib.compress(plain), dtype=torch.uint8)


LAYOUT = Layout(4, 4, 3)
GOOD = encode_sites(torch.tensor([1, 2, 15]), LAYOUT)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (torch.empty(0, dtype=torch.uint8), "is none"),
        (GOOD.int(), "is none"),
        (GOOD.view(1, -1), "is none"),
        (coded(2, b"\0\0\0"), "is none"),
        (GOOD[:-1], "is damaged"),
        (GOOD[:1], "is damaged"),
        (coded(GAPS, b""), "marks 0 of 16 sites, not 3"),
        (coded(GAPS, b"\0\0\0\0"), "marks 4 of 16 sites, not 3"),
        (coded(GAPS, b"\0\0\xff\1"), "reaches outside 0..15: the last is site 258"),
        (coded(BITMAP, b"\3\0"), "marks 2 of 16 sites, not 3"),
    ],
)
def test_damage_is_found(code: Tensor, message: str) -> None:
    assert decode_sites(GOOD, LAYOUT).tolist() == [1, 2, 15]
    with pytest.raises(LayoutError, match="the stored index of a 4x4 layer") as caught:
        decode_sites(code, LAYOUT)
    assert message in str(caught.value)
