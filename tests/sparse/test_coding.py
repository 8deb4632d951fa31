"""Coded tensors come back as they were, and take what their information takes."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smet_train.sparse.coding import code, decode
from smet_train.sparse.index import pack
from smet_train.sparse.layout import Layout
from smet_train.sparse.sampling import first_index
from smet_train.train.files import read_tensors, write_tensors


def coded(tensor: Tensor) -> Tensor:
    content = code(tensor)
    assert content is not None
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@given(st.binary(min_size=1, max_size=3000), st.sampled_from([torch.uint8, torch.int8]), st.integers(1, 40))
def test_what_is_coded_is_decoded(content: bytes, dtype: torch.dtype, repeats: int) -> None:
    tensor = torch.frombuffer(bytearray(content * repeats), dtype=torch.uint8).view(dtype)
    if code(tensor) is not None:
        assert decode(coded(tensor), list(tensor.shape), dtype).equal(tensor)


def test_a_bitmap_takes_little_more_than_its_information() -> None:
    layout = Layout.from_density(512, 1376, 0.1)
    bitmap = pack(first_index(layout, 1, torch.device("cpu")), layout)
    entropy_bytes = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)) * layout.sites / 8
    assert 0.995 * entropy_bytes <= coded(bitmap).numel() <= 1.03 * entropy_bytes


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(100), torch.zeros(100, dtype=torch.int16), torch.empty(0, dtype=torch.uint8)],
    ids=["floats", "wider whole numbers", "nothing"],
)
def test_only_bytes_are_coded(tensor: Tensor) -> None:
    assert code(tensor) is None


def test_noise_is_not_coded() -> None:
    torch.manual_seed(1)
    assert code(torch.randint(0, 256, (100_000,), dtype=torch.uint8)) is None


def test_what_is_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match="coded bytes can't be read"):
        decode(torch.zeros(20, dtype=torch.uint8), [4], torch.uint8)
    with pytest.raises(ValueError, match="hold 1000 values, not 999"):
        decode(coded(torch.zeros(1000, dtype=torch.uint8)), [999], torch.uint8)


def test_a_file_gives_back_coded_and_plain_tensors_alike(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {
        "ages": torch.randint(0, 3, (50, 4, 4), dtype=torch.uint8),
        "signed": torch.randint(-2, 2, (999,), dtype=torch.int8),
        "noise": torch.randint(0, 256, (999,), dtype=torch.uint8),
        "values": torch.randn(7, 3),
        "half": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(7),
    }
    written = write_tensors(tmp_path / "some.safetensors", tensors)
    assert written.n_bytes == (tmp_path / "some.safetensors").stat().st_size
    read = read_tensors(tmp_path / "some.safetensors")
    assert read.keys() == tensors.keys()
    assert all(read[name].equal(tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
