"""What is done about bad documents: how many may be left out, what is told, and the count in a position."""

import json
from pathlib import Path

import pytest

from smet_train.data.rules import Fault, ReadRules, Tally
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError


def skipping(folder: Path, fraction: float = 0.01) -> Source:
    rules = ReadRules(on_bad="skip", max_bad_fraction=fraction)
    return open_source(SourceSpec("jsonl", files=(str(folder / "*.jsonl"),), rules=rules))


def write(path: Path, n_good: int, n_bad: int) -> None:
    path.write_text('{"text": "some words"}\n' * n_good + "broken\n" * n_bad)


def test_a_fraction_of_a_thousand_documents_or_more_may_be_bad(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", n_good=5, n_bad=10)
    assert len(list(skipping(tmp_path).documents())) == 5
    write(tmp_path / "a.jsonl", n_good=5, n_bad=11)
    with pytest.raises(
        DataError, match=r"11 of 16 documents .* more than data.max_bad_fraction=0.01 .* line 16"
    ) as told:
        list(skipping(tmp_path).documents())
    assert told.value.exit_status == 2
    write(tmp_path / "a.jsonl", n_good=3000, n_bad=30)
    assert len(list(skipping(tmp_path).documents())) == 3000
    write(tmp_path / "a.jsonl", n_good=3, n_bad=1)
    with pytest.raises(DataError, match=r"1 of 4 documents"):
        list(skipping(tmp_path, fraction=0.0).documents())


def test_the_bad_document_that_is_one_too_many_is_counted_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", n_good=5, n_bad=11)
    source = skipping(tmp_path)
    stream, told = source.documents(), r"11 of 16 documents"
    with pytest.raises(DataError, match=told):
        list(stream)
    with pytest.raises(DataError, match=told):
        list(source.documents(state=stream.state_dict()))
    assert len(list(skipping(tmp_path, fraction=0.011).documents(state=stream.state_dict()))) == 0


def test_a_source_of_bad_documents_alone_says_what_is_wrong_with_the_last(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", n_good=0, n_bad=2)
    with pytest.raises(DataError, match=r"every document is empty or bad; the last: .*a\.jsonl line 2: it is not JSON"):
        skipping(tmp_path)


def test_only_the_first_fault_of_a_file_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", n_good=2, n_bad=3)
    source = skipping(tmp_path)
    for _ in range(3):
        list(source.documents())
    told = [record.message for record in caplog.records]
    assert ["a.jsonl line 3" in told[0], "b.jsonl line 3" in told[1], len(told)] == [True, True, 2]


def test_an_error_has_the_status_of_its_fault() -> None:
    for status in (1, 2):
        with pytest.raises(DataError, match=r"f line 1: why; mend it, or write data.on_bad=skip") as told:
            Tally(ReadRules(), set()).note("f", Fault("line 1", "why", status))
        assert told.value.exit_status == status


def test_the_count_of_what_was_left_out_is_part_of_a_position(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.jsonl", n_good=20, n_bad=number)

    def fresh() -> TokenWindows:
        return TokenWindows(
            skipping(tmp_path), tokenizer, sequence_tokens=9, seed=1, shuffle_documents=7, validation_fraction=0.001
        )

    stream, states = fresh(), []
    while stream.state_dict()["epoch"] < 3:
        next(stream)
        states.append(stream.state_dict())
    counts = [state["left_out"] for state in states]
    assert counts == sorted(counts)
    assert counts[-1] == 3 * 6
    for state in states[::17]:
        again = fresh()
        again.load_state_dict(json.loads(json.dumps(state)))
        while again.state_dict()["epoch"] < 3:
            next(again)
        assert again.state_dict() == states[-1]
