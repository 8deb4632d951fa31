"""Every kind of source gives its documents, and says what is wrong with its files."""

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.data import records
from smet_train.data.files import human_bytes
from smet_train.data.opened import COMPRESSED
from smet_train.data.python_source import find_python_files, split_source
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.errors import DataError
from tests.programs import BOTH, without

Make = Callable[..., list[str]]


def opened(kind: str, *files: Path | str, **settings: Any) -> Source:
    return open_source(SourceSpec(kind, files=tuple(map(str, files)), **settings))


@pytest.mark.parametrize(
    ("ending", "compress"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_text_is_read_by_line_paragraph_or_document(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    text = "one é\ntwo\n\nthree\nfour\n"
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(compress(text.encode()))
    assert [t.strip() for t in opened("text", path, text_unit="line").documents()] == ["one é", "two", "three", "four"]
    assert [t.strip() for t in opened("text", path).documents()] == ["one é\ntwo", "three\nfour"]
    assert [t.strip() for t in opened("text", path, text_unit="document").documents()] == [text.strip()]


@pytest.mark.parametrize("name", ["what?.txt.gz", "A.TXT.GZ"])
def test_a_compressed_file_is_known_by_its_names_end(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"words"))
    assert list(opened("text", tmp_path / name).documents()) == ["words"]


@pytest.mark.parametrize("field", ["text", "content"])
def test_jsonl_is_read_by_field_whatever_else_a_line_holds(tmp_path: Path, documents: Make, field: str) -> None:
    texts = documents(20)
    lines = [
        json.dumps({field: text, "n": number} | ({"late": 1} if number > 10 else {}))
        for number, text in enumerate(texts)
    ]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(("\ufeff" + "\n".join(lines) + "\n\n").encode()))
    assert list(opened("jsonl", path, text_field=field).documents()) == texts


def test_parquet_is_read_by_column(tmp_path: Path, documents: Make) -> None:
    texts = documents(20)
    pq.write_table(pa.table({"body": texts, "n": list(range(20))}), tmp_path / "a.parquet", row_group_size=7)
    assert list(opened("parquet", tmp_path / "a.parquet", text_field="body").documents()) == texts


def test_a_row_group_that_is_finished_is_not_read_again(
    tmp_path: Path, documents: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents(20)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10)
    source = opened("parquet", tmp_path / "a.parquet")
    read: list[int] = []
    read_group = records._row_group

    def noting(file: pq.ParquetFile, field: str, number: int, *rest: int) -> Iterator[records.Record]:
        read.append(number)
        return read_group(file, field, number, *rest)

    monkeypatch.setattr(records, "_row_group", noting)
    for at, groups in ((9, [0, 1]), (10, [1]), (11, [1]), (20, [])):
        stream = source.documents()
        for _ in range(at):
            next(stream)
        state = stream.state_dict()
        read.clear()
        assert list(source.documents(state=state)) == texts[at:]
        assert read == groups


@BOTH
def test_files_are_read_without_the_library_for_the_hub(programs: ModuleType, tmp_path: Path, documents: Make) -> None:
    (tmp_path / "a.txt").write_text("\n".join(documents(3)))
    script = without("datasets") + (
        "from smet_train.data.sources import SourceSpec, open_source\n"
        "import smet_train.data.tokenizer\n"
        "print(len(list(open_source(SourceSpec('text', files=('a.txt',), text_unit='line')).documents())))\n"
    )
    done = programs.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_globs_are_sorted_deduplicated_and_kept_in_order(shards: list[Path]) -> None:
    folder = shards[0].parent
    source = opened("text", folder / "shard_2.txt", folder / "shard_*.txt", text_unit="line")
    assert [next(iter(text)) for text in source.documents()] == ["2"] * 50 + ["0"] * 40 + ["1"] * 30
    assert "3 files" in source.description


def test_shards_are_permuted_by_seed_and_epoch_and_positions_are_exact(source: Source) -> None:
    whole = list(source.documents((1, 0)))
    assert sorted(whole) == sorted(source.documents())
    orders = {"".join(dict.fromkeys(text[0] for text in source.documents((1, epoch)))) for epoch in range(12)}
    assert len(orders) > 2
    for at in (0, 1, 35, 70, 119):
        stream = source.documents((1, 0))
        for _ in range(at):
            next(stream)
        assert list(source.documents((1, 0), stream.state_dict())) == whole[at:]


def test_a_moved_corpus_has_the_same_fingerprint_and_a_changed_one_another(shards: list[Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    copies = [moved / path.name for path in shards]
    for path, copy in zip(shards, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    first = opened("text", *shards, text_unit="line").fingerprint
    assert opened("text", *copies, text_unit="line").fingerprint == first
    assert opened("text", *copies).fingerprint != first
    copies[1].write_text(copies[1].read_text() + "more")
    assert opened("text", *copies, text_unit="line").fingerprint != first


@pytest.mark.parametrize("ending", ["", *COMPRESSED])
def test_empty_files_are_left_out_with_a_warning(
    shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    nothing = tmp_path / f"nothing.txt{ending}"
    nothing.touch()
    assert len(list(opened("text", nothing, *shards, text_unit="line").documents())) == 120
    assert "left out 1 empty files of 4" in caplog.text


BAD = [
    ("text", "a.txt", b"", "the file is empty, there is nothing to train on"),
    ("text", "a.txt.gz", b"", "the file is empty, there is nothing to train on"),
    ("text", "a.txt", b" \n \n", "holds no text: every document is empty"),
    ("text", "a.txt", b"\0\1\2", "a.txt line 1: it is not text but holds a NUL byte"),
    ("text", "a.txt", b"caf\xe9 noir" * 9, "a.txt line 1: it is not UTF-8 text"),
    ("text", "a.txt.gz", b"no gzip", "can't be read"),
    ("text", "a.txt.gz", gzip.compress(b"words and more", mtime=0)[:-9], "is cut short"),
    ("jsonl", "a.jsonl", b"not json\n", "a.jsonl line 1: it is not JSON (Expecting value, column 1)"),
    ("jsonl", "a.jsonl", b"[1]\n", "line 1: it holds a list, not a JSON object"),
    ("jsonl", "a.jsonl", b'{"body": "x"}\n', "line 1: it has no text in data.text_field='text'; its columns are body"),
    ("jsonl", "a.jsonl", b'{"text": 3}\n', "data.text_field='text' holds int, not text"),
    ("parquet", "a.parquet", b"PARQ", "is not a Parquet file"),
    ("parquet", "a.parquet", b"PARE" + bytes(99), "is an encrypted Parquet file, which can't be read; decrypt it"),
    ("parquet", "a.parquet", b"PAR1 and then nothing", "a.parquet"),
]


@pytest.mark.parametrize(("kind", "name", "content", "message"), BAD)
def test_a_bad_file_is_named_with_what_is_wrong(
    tmp_path: Path, kind: str, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as told:
        list(opened(kind, tmp_path / name).documents())
    assert message in str(told.value)
    assert name in str(told.value)
    assert told.value.exit_status == 2


def test_a_damaged_file_late_in_a_shuffled_pass_is_named(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "fine"}\n' * 3)
    (tmp_path / "4.jsonl").write_text('{"text": "fine"}\nbroken\n')
    source = opened("jsonl", tmp_path / "*.jsonl")
    for epoch in range(3):
        with pytest.raises(DataError, match=r"4\.jsonl line 2: it is not JSON .*broken.*data\.on_bad=skip"):
            list(source.documents((1, epoch)))


def test_mistakes_about_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.source=text needs data.files"):
        opened("text")
    with pytest.raises(DataError, match="is a folder; write its files"):
        opened("text", tmp_path)
    with pytest.raises(DataError, match="matches no file"):
        opened("text", tmp_path / "*.txt")
    with pytest.raises(DataError, match=r"data.source=nothing is unknown"):
        opened("nothing")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column 'text'; write data.text_field=, its columns are body"):
        opened("parquet", tmp_path / "a.parquet")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: it has 2 columns 'text'; rename all but one of them"):
        opened("parquet", tmp_path / "a.parquet")


def test_a_name_with_wildcards_of_its_own_is_meant_literally(tmp_path: Path) -> None:
    (tmp_path / "[a].txt").write_text("here")
    assert list(opened("text", tmp_path / "[a].txt").documents()) == ["here"]


def test_the_embedded_source_is_this_interpreters_library() -> None:
    source = open_source(SourceSpec("python_source"))
    texts = list(source.documents())
    assert len(texts) > 1000
    assert any("class OrderedDict" in text for text in texts)
    assert max(map(len, texts)) < 10_000
    assert source.fingerprint == open_source(SourceSpec("python_source")).fingerprint


def test_pieces_of_a_file_are_the_file() -> None:
    text = "".join(f"line {number}\n" + "\n" * (number % 7 == 0) for number in range(2000)) + "x" * 9000
    pieces = list(split_source(text))
    assert "".join(pieces) == text
    assert all(2000 <= len(piece) < 4100 for piece in pieces[:-1])
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])
    assert list(split_source("")) == []


def test_python_files_are_found_in_a_mixed_order_without_tests(tmp_path: Path) -> None:
    for name in ("a.py", "b/c.py", "test/d.py", "e.txt", "_sysconfigdata_x.py", "empty.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.py" else f"# {name}")
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    found = find_python_files(tmp_path)
    assert sorted(Path(path).relative_to(tmp_path).as_posix() for path in found.paths) == ["a.py", "b/c.py"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no .py file"):
        find_python_files(tmp_path / "nothing")


def test_a_hub_source_without_a_name_or_a_network() -> None:
    with pytest.raises(DataError, match=r"data.source=hub needs data.name"):
        open_source(SourceSpec("hub"))
    with pytest.raises(DataError, match=r"Is there a network\?") as told:
        open_source(SourceSpec("hub", name="allenai/c4", subset="en"))
    assert told.value.exit_status == 1


def test_a_hub_data_set_is_streamed_by_the_same_code(tmp_path: Path, documents: Make) -> None:
    """A local folder laid out as a hub repository goes the hub's way."""
    texts = documents(9)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts))
    source = open_source(SourceSpec("hub", name=str(tmp_path)))
    assert list(source.documents()) == texts
    assert "streamed from 1 shards" in source.description
    with pytest.raises(DataError, match="data.split=nothing"):
        open_source(SourceSpec("hub", name=str(tmp_path), split="nothing"))
    with pytest.raises(DataError, match="has no column 'body'"):
        open_source(SourceSpec("hub", name=str(tmp_path), text_field="body"))


def test_a_hub_data_set_that_does_not_exist_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    def refuse(*_: object, **__: object) -> None:
        raise DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr("smet_train.data.hub.load_dataset_builder", refuse)
    with pytest.raises(DataError, match="doesn't exist on the Hub") as told:
        open_source(SourceSpec("hub", name="a/b"))
    assert told.value.exit_status == 2


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e6, "2.0 MB"), (3e9, "3.0 GB"), (5e12, "5.0 TB")],
)
def test_bytes_for_people(n_bytes: float, text: str) -> None:
    assert human_bytes(int(n_bytes)) == text


@pytest.mark.parametrize("error", [RuntimeError("no codec"), TypeError("no type"), KeyError("no key")])
def test_any_error_of_the_library_that_reads_parquet_is_a_fault_of_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    source = opened("parquet", tmp_path / "a.parquet")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(DataError, match=r"a\.parquet row group 1: it is damaged \(.*no "):
        list(source.documents())
    error = MemoryError("no memory")
    with pytest.raises(MemoryError):
        list(source.documents())
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(MemoryError):
        list(source.documents())
