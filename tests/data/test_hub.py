"""Data sets of the hub: the text column alone is read, and what fails is told from the network."""

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.data.rules import ReadRules
from smet_train.data.sources import SourceSpec, open_source
from smet_train.errors import DataError

Columns = dict[str, Any]  # a list or an array each
TEXT: Columns = {"text": ["a", "b"]}
NUMBERED: Columns = {"text": ["a", "b"], "n": [1, 2]}
# Two shards each; the second differs from the first in a column that is not trained on.
UNLIKE_SHARDS: dict[str, tuple[Columns, Columns]] = {
    "another type": (NUMBERED, {"text": ["c", "d"], "n": ["x", "y"]}),
    "missing": (NUMBERED, {"text": ["c", "d"]}),
    "one more": (TEXT, {"n": [1, 2], "text": ["c", "d"]}),
    "null": (NUMBERED, {"text": ["c", "d"], "n": [None, None]}),
    "null at first": ({"text": ["a", "b"], "n": [None, None]}, {"text": ["c", "d"], "n": [1, 2]}),
    "another struct": (
        {"text": ["a", "b"], "n": [{"a": 1}, {"a": 2}]},
        {"text": ["c", "d"], "n": [{"b": "x"}, {"b": "y"}]},
    ),
    "lists": (NUMBERED, {"text": ["c", "d"], "n": [[1], [2, 3]]}),
    "names of an agent's trace": (
        {"text": ["a", "b"], "type": ["user", "user"], "message": [{"a": 1}, {"a": 2}]},
        {"text": ["c", "d"], "type": ["user", "user"], "message": [{"a": 1}, {"a": 2}]},
    ),
}


def write_hub_shards(folder: Path, kind: str, shards: Iterable[Columns]) -> SourceSpec:
    folder.mkdir(exist_ok=True)
    for number, columns in enumerate(shards):
        path = folder / f"train-{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table(columns), path)
        elif kind == "jsonl":
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return SourceSpec("hub", name=str(folder), rules=ReadRules(retries=0))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("unlike", UNLIKE_SHARDS)
def test_columns_of_the_hub_that_are_not_trained_on_may_be_anything(tmp_path: Path, kind: str, unlike: str) -> None:
    source = open_source(write_hub_shards(tmp_path, kind, UNLIKE_SHARDS[unlike]))
    assert list(source.documents()) == ["a", "b", "c", "d"]
    stream = source.documents((1, 0))
    texts = [next(stream), *source.documents((1, 0), json.loads(json.dumps(stream.state_dict())))]
    assert sorted(texts) == ["a", "b", "c", "d"]


def test_json_in_which_other_columns_change_from_line_to_line(tmp_path: Path) -> None:
    values: list[Any] = [1, "x", None, [1, "x"], {"a": {"b": []}}, 1.5]
    rows = [{"text": f"{number}", "n": value} for number, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(open_source(SourceSpec("hub", name=str(tmp_path))).documents()) == list("012345")


def test_texts_of_the_hub_are_those_of_the_files_whatever_holds_them(tmp_path: Path) -> None:
    texts: list[Any] = ["a", "007", "\u6f22", "1.50"]
    for kind in ("string", "large_string", "binary", "large_binary", "string_view"):
        folder = tmp_path / kind
        folder.mkdir()
        pq.write_table(pa.table({"text": texts}), folder / "train-0.parquet")
        other = pa.array(texts).cast(kind) if kind != "string" else pa.array(texts).dictionary_encode()
        pq.write_table(pa.table({"text": other}), folder / "train-1.parquet")
        assert list(open_source(SourceSpec("hub", name=str(folder))).documents()) == texts * 2
    source = open_source(write_hub_shards(tmp_path / "csv", "csv", [{"text": ["007", "1.50"], "n": [1, 2]}]))
    assert list(source.documents()) == ["007", "1.50"]


BAD_TEXTS: dict[str, pa.Array] = {
    "numbers": pa.array([1, 2]),
    "structs": pa.array([{"a": 1}, {"a": 2}]),
    "nulls": pa.nulls(2),
    "latin-1": pa.array([b"\xe9", b"\xe9"]),
    "latin-1 that is said to be UTF-8": pa.array([b"\xe9", b"\xe9"]).view(pa.string()),
}


@pytest.mark.parametrize("bad", BAD_TEXTS)
def test_rows_of_the_hub_without_text_are_bad_documents(tmp_path: Path, bad: str) -> None:
    spec = write_hub_shards(tmp_path, "parquet", [{"text": ["a", "b"]}, {"text": BAD_TEXTS[bad]}, TEXT])
    assert list(open_source(replace(spec, rules=ReadRules(on_bad="skip"))).documents()) == ["a", "b"] * 2
    with pytest.raises(DataError, match=r"row 3: it has no text in data.text_field='text'"):
        list(open_source(spec).documents())


def test_json_texts_of_several_types_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a \\"b\\""}\n{"text": 7}\n{"text": "b"}\n{"text": null}\n')
    source = open_source(SourceSpec("hub", name=str(tmp_path), rules=ReadRules(on_bad="skip")))
    stream = source.documents()
    assert (list(stream), stream.bad) == (['a "b"', "b"], 2)


def test_a_position_in_the_hub_of_an_earlier_version_is_taken_up(tmp_path: Path) -> None:
    """As it was written while all columns were read."""
    shards = {"examples_iterable": {"shard_idx": 0, "shard_example_idx": 3, "type": "ArrowExamplesIterable"}}
    before = {"previous_state": {"shard_idx": 0, "shard_example_idx": 0, "type": "ArrowExamplesIterable"}}
    counts = {"batch_idx": 2, "num_chunks_since_previous_state": 2, "cropped_chunk_length": 0}
    at = {"examples_iterable": {**shards, **before, **counts, "type": "RebatchedArrowExamplesIterable"}, "epoch": 0}
    state = {"at": at, "row": 2, "good": 2, "bad": 0}
    for kind in ("parquet", "jsonl"):
        columns: Columns = {"text": ["a", "b", "c"], "n": [1, 2, 3]}
        source = open_source(write_hub_shards(tmp_path / kind, kind, [columns, columns]))
        stream = source.documents()
        assert (next(stream), next(stream), stream.state_dict()) == ("a", "b", state)
        assert list(source.documents(state=state)) == ["c", "a", "b", "c"]


@pytest.mark.parametrize(
    ("error", "told", "exit_status"),
    [
        (TypeError("Couldn't cast"), r"data.name=a/b .* can't be read: TypeError: Couldn't cast", 2),
        (ModuleNotFoundError("No module named 'zstandard'"), r"can't be read: ModuleNotFoundError: .*zstandard", 2),
        (RuntimeError("CAS service error"), r"CAS service error. Is there a network\?", 1),
    ],
)
def test_what_is_no_failure_of_the_network_is_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, exit_status: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("smet_train.data.hub.load_dataset_builder", fail)
    with pytest.raises(DataError, match=told) as raised:
        open_source(SourceSpec("hub", name="a/b"))
    assert raised.value.exit_status == exit_status


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_damaged_file_of_the_hub_is_told_or_passed_over(tmp_path: Path, kind: str) -> None:
    texts = [f"text {number}" for number in range(12)]
    spec = write_hub_shards(tmp_path, kind, [{"text": texts[first : first + 4]} for first in (0, 4, 8)])
    damaged = tmp_path / f"train-1.{kind}"
    damaged.write_bytes(damaged.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"from row 5 on: \w+: .*; mend it, or write data.on_bad=skip"):
        list(open_source(spec).documents())
    source = open_source(replace(spec, rules=ReadRules(on_bad="skip")))
    stream = source.documents()
    for number, text in enumerate([*texts[:4], *texts[8:]]):
        state = json.loads(json.dumps(stream.state_dict()))
        assert [next(stream), stream.bad] == [text, int(number > 3)]
        if number:
            assert list(source.documents(state=state)) == [*texts[:4], *texts[8:]][number:]
    assert next(stream, None) is None
    for seed in range(3):
        assert sorted(source.documents((seed, 0))) == sorted([*texts[:4], *texts[8:]])


def test_a_damaged_page_is_no_failure_of_the_network(tmp_path: Path) -> None:
    """pyarrow raises OSError for it, as a network does."""
    spec = write_hub_shards(tmp_path, "parquet", [{"text": ["a" * 999, "b" * 999]}, TEXT])
    path = tmp_path / "train-0.parquet"
    content = bytearray(path.read_bytes())
    begin = content.index(b"aaaa") - 6
    content[begin : begin + 12] = b"\xff" * 12
    path.write_bytes(content)
    rules = ReadRules(on_bad="skip", retries=9)
    assert list(open_source(replace(spec, rules=rules)).documents()) == ["a", "b"]
