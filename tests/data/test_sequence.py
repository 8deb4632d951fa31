"""A registered source: positions are exact, and bad documents are handled as the rules say."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smet_train.data.rules import ReadRules
from smet_train.data.sequence import SequenceStream
from smet_train.data.sources import SOURCES, SourceSpec, open_source, register_source
from smet_train.data.tokenizer import TextTokenizer
from smet_train.data.validation import held_out_windows
from smet_train.errors import DataError


class Faulty(Sequence[str]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: Any) -> Any:
        texts = ["zero", " ", 2, "three", "a long one" * 9, "five"]
        if number == 3:
            raise OSError("gone")
        return texts[number]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = dict(SOURCES)
    yield
    SOURCES.clear()
    SOURCES.update(before)


def stream(documents: Sequence[str], rules: ReadRules, state: Any = None) -> SequenceStream:
    return SequenceStream(documents, len(documents), "mine", rules, set(), state)


def test_every_position_is_taken_up() -> None:
    documents = ["a", "", "b", "c", " ", "d"]
    whole = list(stream(documents, ReadRules()))
    assert whole == ["a", "b", "c", "d"]
    for n in range(len(whole) + 1):
        begun = stream(documents, ReadRules())
        head = [next(begun) for _ in range(n)]
        assert head + list(stream(documents, ReadRules(), begun.state_dict())) == whole


def test_bad_documents_are_left_out_and_counted() -> None:
    lenient = stream(Faulty(), ReadRules(on_bad="skip", max_document_bytes=20))
    assert list(lenient) == ["zero", "five"]
    assert lenient.bad == 3
    assert lenient.state_dict() == {"at": 6, "good": 2, "bad": 3}
    lenient.end()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (2, "mine document 2: it is not a text but int"),
        (3, "mine document 3: OSError: gone"),
        (4, "mine document 4: it is longer than data.max_document_bytes=20"),
    ],
)
def test_or_end_the_run(at: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(stream(Faulty(), ReadRules(max_document_bytes=20), {"at": at, "good": 0, "bad": 0}))


def test_half_a_character_is_a_bad_document() -> None:
    documents = ["a", "b\ud800", "c"]
    assert list(stream(documents, ReadRules(on_bad="skip"))) == ["a", "c"]
    with pytest.raises(DataError, match=r"mine document 1: it holds half of a character \(surrogates not allowed\)"):
        list(stream(documents, ReadRules()))


def test_nothing_is_kept_of_documents_that_may_change_behind_their_settings(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    texts = [f"the sites of layer {number} move" for number in range(200)]
    register_source("mine", lambda _: texts)

    def held_out() -> str:
        windows = held_out_windows(
            open_source(SourceSpec("mine")),
            tokenizer,
            sequence_tokens=8,
            windows=4,
            validation_fraction=0.5,
            cache_dir=tmp_path / "kept",
        ).windows
        return tokenizer.decode(windows[:, 1:].flatten().tolist())

    assert "move" in held_out()
    texts[:] = [text.replace("move", "stay") for text in texts]
    assert "stay" in held_out()
    assert "move" not in held_out()
    assert not (tmp_path / "kept").exists()


def test_a_source_of_another_length_or_setting_is_another() -> None:
    texts = ["a", "b"]
    register_source("mine", lambda spec: texts * (2 if spec.subset else 1))
    one, same, other = (open_source(SourceSpec("mine", subset=subset)) for subset in (None, None, "x"))
    assert one.identity == same.identity != other.identity
    assert list(other.documents()) == ["a", "b", "a", "b"]
    assert one.description == "mine: 2 documents"
    texts.append("c")
    assert open_source(SourceSpec("mine")).identity != one.identity
    with pytest.raises(DataError, match="data.source=mine already"):
        register_source("mine", lambda _: texts)


def test_code_of_a_source_that_fails_when_it_is_opened_is_named() -> None:
    class Endless(Faulty):
        def __len__(self) -> int:
            raise RuntimeError("no end")

    def fail(_: SourceSpec) -> Sequence[str]:
        raise KeyError("corpus")

    register_source("endless", lambda _: Endless())
    register_source("failing", fail)
    with pytest.raises(DataError, match="data.source=endless: its code ended by RuntimeError: no end") as told:
        open_source(SourceSpec("endless"))
    assert told.value.exit_status == 1
    with pytest.raises(DataError, match="data.source=failing: its code ended by KeyError: 'corpus'"):
        open_source(SourceSpec("failing"))

    def refuse(_: SourceSpec) -> Sequence[str]:
        raise DataError("data.files: mine needs one")

    register_source("refusing", refuse)
    with pytest.raises(DataError, match="^data.files: mine needs one$"):
        open_source(SourceSpec("refusing"))
