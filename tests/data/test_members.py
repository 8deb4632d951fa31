"""Files of several compressed members are read to their end, or are told to be damaged."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smet_train.data.members import Members
from smet_train.data.opened import Damaged, read_chunks

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    ".gz": gzip.compress,
}
LINES = [f'{{"text": "line {number}"}}\n'.encode() for number in range(1, 1201)]


def members(ending: str) -> list[bytes]:
    """1,200 lines in 12 members."""
    return [COMPRESS[ending](b"".join(LINES[first : first + 100])) for first in range(0, 1200, 100)]


def read(path: Path, content: bytes) -> tuple[bytes, str | None]:
    """What is read, and what is said of the rest."""
    path.write_bytes(content)
    found = bytearray()
    try:
        for chunk in read_chunks(str(path)):
            found += chunk
    except Damaged as error:
        return bytes(found), str(error)
    return bytes(found), None


@pytest.mark.parametrize("ending", COMPRESS)
def test_all_of_many_members_is_read(tmp_path: Path, ending: str) -> None:
    assert read(tmp_path / f"a{ending}", b"".join(members(ending))) == (b"".join(LINES), None)


@pytest.mark.parametrize("ending", COMPRESS)
def test_one_damaged_byte_at_the_head_of_a_member_is_told(tmp_path: Path, ending: str) -> None:
    parts = members(ending)
    content = bytearray(b"".join(parts))
    begin = len(b"".join(parts[:3]))
    content[begin] = 0
    found, told = read(tmp_path / f"a{ending}", bytes(content))
    assert found == b"".join(LINES[:300])
    assert told is not None
    if ending != ".gz":
        assert f"in part 4, from byte {begin:,} of the file on" in told


@pytest.mark.parametrize(("ending", "rest"), list(product(COMPRESS, [b"rubbish", b"<html>", b"\1"])))
def test_what_follows_the_last_member_and_is_none_is_told(tmp_path: Path, ending: str, rest: bytes) -> None:
    found, told = read(tmp_path / f"a{ending}", b"".join(members(ending)) + rest)
    assert found == b"".join(LINES)
    assert told is not None


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_file_of_zero_bytes_is_not_an_empty_one(tmp_path: Path, ending: str) -> None:
    found, told = read(tmp_path / f"a{ending}", bytes(4096))
    assert found == b""
    assert told is not None


@pytest.mark.parametrize("n_zeros", [4, 8, 300_000])
def test_padding_of_xz_loses_nothing_behind_it(tmp_path: Path, n_zeros: int) -> None:
    first, second = lzma.compress(b"first\n"), lzma.compress(b"second\n")
    padding = bytes(n_zeros)
    assert read(tmp_path / "a.xz", first + padding + second + padding) == (b"first\nsecond\n", None)


@pytest.mark.parametrize(("ending", "n_zeros"), [(".xz", 3), (".bz2", 4), (".bz2", 512), (".lzma", 4)])
def test_zero_bytes_that_are_no_padding_are_told(tmp_path: Path, ending: str, n_zeros: int) -> None:
    """A file of bz2 members that a disk has lost the end of may end by them."""
    found, told = read(tmp_path / f"a{ending}", COMPRESS[ending](b"first\n") + bytes(n_zeros))
    assert found == b"first\n"
    assert told is not None


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.integers(1, 50), st.integers(1, 50))
def test_any_members_in_any_pieces_are_what_was_compressed(parts: list[bytes], chunk: int, asked: int) -> None:
    for ending, make in ((".bz2", bz2.BZ2Decompressor), (".xz", lzma.LZMADecompressor)):
        reader = Members(io.BytesIO(b"".join(map(COMPRESS[ending], parts))), make, chunk)
        found = bytearray()
        while piece := reader.read1(asked):
            assert len(piece) <= asked
            found += piece
        assert bytes(found) == b"".join(parts)
