"""Documents of text files are those of datasets' own builder, and every position in them can be taken up."""

import bz2
import gzip
import io
import itertools
import lzma
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import load_dataset

from smet_train.data.lines import At, read_lines, read_paragraphs, read_whole, split_lines
from smet_train.data.opened import Damaged, read_chunks
from smet_train.data.records import text_reader
from smet_train.data.rules import Fault
from tests.conftest import make_documents

SAMPLES = {
    "plain": b"one\ntwo\n\nthree\nfour\n",
    "no final newline": b"one\n\ntwo",
    "CRLF": b"one\r\ntwo\r\n\r\nthree\r\n",
    "CR": b"one\rtwo\r\rthree\r",
    "mixed": b"a\r\n\nb\n\r\nc\r\r\nd\n\n\n\ne\r\n\r\n\r\nf",
    "BOM": b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n\n\xef\xbb\xbfthree",
    "blank": b"\n\n\none\n \n\t\n\ntwo\n\n\n",
    "more line feeds": b"a\n\n\nb\n\n\n\n\nc",
    "other separators": "a\u2028b\x0bc\x0cd\x85e\u0085f\n\ng\x1c\n".encode("utf-8", "replace"),
    "wide": "äöü 漢字 😀\n\n😀\r\n漢".encode(),
    "only a line feed": b"\n",
    "only a BOM": b"\xef\xbb\xbf",
}


def by_datasets(path: Path, unit: str, tmp_path: Path) -> list[str]:
    rows = load_dataset(
        "text", data_files=[str(path)], split="train", streaming=True, sample_by=unit, cache_dir=str(tmp_path / "hf")
    )
    texts = [str(row["text"]).removeprefix("\ufeff") for row in rows]
    return [text for text in texts if text and not text.isspace()]


def by_us(path: Path, unit: str, position: list[int] | None = None) -> list[tuple[str, list[int]]]:
    found = []
    for text, after in text_reader(unit, 1000)(str(path), position):
        assert isinstance(text, str)
        if text and not text.isspace():
            found.append((text, after))
    return found


@pytest.mark.parametrize("unit", ["line", "paragraph", "document"])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_documents_are_those_of_the_library(tmp_path: Path, name: str, unit: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(SAMPLES[name])
    assert [text for text, _ in by_us(path, unit)] == by_datasets(path, unit, tmp_path)


@pytest.mark.parametrize("unit", ["line", "paragraph", "document"])
def test_so_are_those_of_random_bytes_in_random_chunks(
    tmp_path: Path, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(unit)
    path = tmp_path / "a.txt"
    for _ in range(40):
        path.write_bytes(b"".join(draw.choices([b"\n", b"\r", b"\r\n", b"a", "é".encode(), b" "], k=60)))
        monkeypatch.setattr("smet_train.data.opened.CHUNK_BYTES", draw.randint(1, 9))
        found = by_us(path, unit)
        assert [text for text, _ in found] == by_datasets(path, unit, tmp_path)
        for number, (_, after) in enumerate(found):
            assert by_us(path, unit, after) == found[number + 1 :]


@cache
def lines(n_documents: int) -> bytes:
    return "\n".join(make_documents(n_documents)).encode()


@cache
def compressed(n_documents: int, ending: str) -> bytes:
    return COMPRESS[ending](lines(n_documents))


def by_arrow(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": partial(lzma.compress, preset=0),
    ".zst": partial(by_arrow, codec="zstd"),
    ".lz4": partial(by_arrow, codec="lz4"),
}


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_position_in_any_compression_is_taken_up(
    tmp_path: Path, ending: str, documents: Callable[..., list[str]]
) -> None:
    path = tmp_path / f"a.txt{ending}"
    texts = documents(3000)
    path.write_bytes(COMPRESS[ending]("\n".join(texts).encode()))
    found = by_us(path, "line")
    assert [text for text, _ in found] == texts
    for number in (0, 1, 1500, 2998, 2999):
        assert by_us(path, "line", found[number][1]) == found[number + 1 :]
    assert found[-1][1] == [len("\n".join(texts).encode()), 3000]


@pytest.mark.parametrize(
    ("ending", "fault"),
    # What is flipped in the lz4 that pyarrow writes, without a checksum, is text all the same.
    [*itertools.product([".gz", ".bz2", ".xz", ".zst"], ["cut", "flipped"]), (".lz4", "cut")],
)
def test_a_damaged_file_breaks_off_at_one_place_wherever_reading_began(tmp_path: Path, ending: str, fault: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    content = bytearray(compressed(20_000, ending))
    middle = len(content) * 3 // 4
    if fault == "cut":
        del content[middle:]
    else:
        content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)

    def read(position: list[int] | None) -> Iterator[list[int]]:
        try:
            for _, after in text_reader("line", 1000)(str(path), position):
                yield after
        except Damaged:
            return
        pytest.fail("nothing is damaged")

    found = list(read(None))
    assert len(found) > 100
    for number in (0, len(found) // 2, len(found) - 1):
        assert list(read(found[number])) == found[number + 1 :]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
@pytest.mark.parametrize("rest", ["cut", "foreign"])
@pytest.mark.parametrize("n_documents", [5, 20_000])
def test_all_that_comes_before_the_damage_is_read(tmp_path: Path, ending: str, rest: str, n_documents: int) -> None:
    """A whole part, and behind it one that is cut short, or what is not compressed at all."""
    cut = COMPRESS[ending](b"more")[:-3]
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(compressed(n_documents, ending) + (cut if rest == "cut" else b"not compressed at all"))
    read = bytearray()
    damaged = False
    try:
        for chunk in read_chunks(str(path)):
            read += chunk
    except Damaged:
        damaged = True
    assert damaged
    assert read.startswith(lines(n_documents))


def test_a_long_line_is_a_fault_and_no_more_of_it_is_kept() -> None:
    chunks = [b"short\n", b"x" * 50, b"y" * 50, b"\nlast\n", b"z" * 101]
    assert list(split_lines(chunks, 10)) == [(b"short\n", 6), (None, 101), (b"last\n", 5), (None, 101)]
    found = list(read_lines(chunks, At(), 10))
    assert [text if isinstance(text, str) else text.place for text, _ in found] == ["short", "line 2", "last", "line 4"]
    assert found[1][0] == Fault("line 2", "it is longer than data.max_document_bytes=10")


@pytest.mark.parametrize(
    ("reader", "content", "expected"),
    [
        (read_lines, b"a\n\xff\nb", ["a", "line 2", "b"]),
        (read_paragraphs, b"a\n\nb\n\xff\nc\n\nd", ["a", "line 4", "d"]),
        (read_paragraphs, b"a\n\nb\nbbbbbb\nccccc\n\nd", ["a", "from line 3 on", "d"]),
        (read_paragraphs, b"a\n\n" + b"b" * 20 + b"\n\nd", ["a", "line 3", "d"]),
        (read_whole, b"a\n\nb\n\xff\n", ["line 4"]),
        (read_whole, b"aaaa\nbbbb\ncccc\n", ["from line 1 on"]),
    ],
)
def test_a_fault_is_named_by_its_line_and_what_follows_is_read(
    reader: Callable[[Iterable[bytes], At, int], Iterator[tuple[str | Fault, At]]], content: bytes, expected: list[str]
) -> None:
    for size in range(1, len(content) + 1):
        chunks = [content[begin : begin + size] for begin in range(0, len(content), size)]
        found = list(reader(chunks, At(), 10))
        assert [text if isinstance(text, str) else text.place for text, _ in found] == expected
        assert found[-1][1].bytes == len(content)


def zstd_frame(text: bytes, window_log: int, dictionary: int = 0) -> bytes:
    """A sound frame with ``text`` as it is (RFC 8878): descriptor, window, number of a dictionary, one raw block."""
    head = bytes([1 if dictionary else 0, (window_log - 10) << 3]) + (bytes([dictionary]) if dictionary else b"")
    return b"\x28\xb5\x2f\xfd" + head + ((len(text) << 3) | 1).to_bytes(3, "little") + text


def of_unknown_method(text: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return b"\x1f\x8b\x07" + gzip.compress(text)[3:]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", text)
    return (
        packed.getvalue()
        .replace(b"PK\3\4\x14\0\0\0\0", b"PK\3\4\x14\0\0\0\x5d")
        .replace(b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x5d")
    )


@pytest.mark.parametrize(
    ("ending", "content", "told"),
    [
        (".zst", zstd_frame(b"text\n", 27), None),
        (".zst", zstd_frame(b"text\n", 28), r"compressed with --long .*can't be read; unpack it \(zstd -d --long=31\)"),
        (".zst", zstd_frame(b"text\n", 31), r"compressed with --long"),
        (".zst", zstd_frame(b"text\n", 20, dictionary=7), r"compressed with a dictionary \(zstd -D\)"),
        (".zip", of_unknown_method(b"text\n", ".zip"), r"compressed by a method that can't be read; unpack it"),
        (".gz", of_unknown_method(b"text\n", ".gz"), r"compressed by a method that can't be read; unpack it"),
    ],
)
def test_what_is_sound_and_beyond_the_reader_is_not_called_damaged(
    tmp_path: Path, ending: str, content: bytes, told: str | None
) -> None:
    """In the second of two members where there can be two, after the text of the first."""
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(content)
    if told is None:
        assert list(read_chunks(str(path))) == [b"text\n"]
        return
    before = b"" if ending == ".zip" else b"before\n"
    path.write_bytes((COMPRESS[ending](before) if before else b"") + content)
    chunks = read_chunks(str(path))
    assert b"".join(itertools.islice(chunks, 1 if before else 0)) == before
    with pytest.raises(Damaged, match=told) as error:
        list(chunks)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("names", [[], ["corpus/"], ["a.txt", "b.txt"]])
def test_a_zip_archive_holds_one_file(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "" if name.endswith("/") else "text")
    n_files = sum(not name.endswith("/") for name in names)
    with pytest.raises(Damaged, match=f"it holds {n_files} files, where one is read; unpack it"):
        list(read_chunks(str(path)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("corpus/", "")
        archive.writestr("corpus/a.txt", "the one")
        archive.writestr("__MACOSX/corpus/._a.txt", "attributes")
    assert b"".join(read_chunks(str(path))) == b"the one"
    content = bytearray(path.read_bytes())
    place = content.rindex(b"corpus/a.txt")  # in the directory at the end, whose entries have flags 38 bytes before
    content[place - 38] |= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="its file is encrypted; unpack it"):
        list(read_chunks(str(path)))
