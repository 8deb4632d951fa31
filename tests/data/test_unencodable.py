"""Documents that the tokenizer can't encode are bad ones: named by their place, left out where the rules say so."""

import json
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from smet_train.data import tokenizer as tokenizer_module
from smet_train.data.loader import BatchLoader
from smet_train.data.rules import Fault, ReadRules
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.split import is_validation
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, load_tokenizer
from smet_train.data.validation import held_out_windows
from smet_train.errors import DataError

UNKNOWN = "z"
CANT = "the tokenizer can't encode it"


def words_alone() -> Tokenizer:
    made = Tokenizer(models.WordLevel(vocab={"</s>": 0, **{letter: 1 + n for n, letter in enumerate("abcdefgh")}}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def pieces_alone() -> Tokenizer:
    return Tokenizer(models.Unigram([("</s>", 0.0), *((letter, -1.0) for letter in "abcdefgh ")]))


MAKERS = {"WordLevel": words_alone, "Unigram": pieces_alone}


def lines(n_lines: int, bad: set[int]) -> list[str]:
    letters = "abcdefgh"
    return [
        " ".join([letters[n % 8], letters[n // 8 % 8], letters[n // 64 % 8], *([UNKNOWN] if n in bad else [])])
        for n in range(n_lines)
    ]


def source_of(path: Path, texts: list[str], on_bad: str, fraction: float = 1.0) -> Source:
    path.write_text("\n".join(texts) + "\n")
    rules = ReadRules(on_bad=on_bad, max_bad_fraction=fraction)
    return open_source(SourceSpec("text", files=(str(path),), text_unit="line", rules=rules))


def windows(source: Source, tokenizer: TextTokenizer, shuffle: int = 1) -> TokenWindows:
    return TokenWindows(
        source, tokenizer, sequence_tokens=7, seed=1, shuffle_documents=shuffle, validation_fraction=1e-9
    )


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("shuffle", [1, 10])
def test_the_place_of_a_document_that_has_no_tokens_is_told(tmp_path: Path, kind: str, shuffle: int) -> None:
    source = source_of(tmp_path / "a.txt", lines(40, {23}), "error")
    loader = BatchLoader(
        windows(source, TextTokenizer(MAKERS[kind](), "</s>"), shuffle), micro_batch_size=1, prefetch_batches=2
    )
    with pytest.raises(DataError, match=rf"a\.txt line 24: {CANT} .*; mend it, or write data.on_bad=skip"):
        list(islice(loader, 40))
    loader.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_left_out_leaves_the_windows_of_the_others(tmp_path: Path, kind: str) -> None:
    bad = {0, 1, 17, 18, 19, 63}
    tokenizer = TextTokenizer(MAKERS[kind](), "</s>")
    texts = lines(64, bad)
    skipping = windows(source_of(tmp_path / "a.txt", texts, "skip"), tokenizer)
    good = windows(source_of(tmp_path / "b.txt", [text for text in texts if UNKNOWN not in text], "error"), tokenizer)
    assert list(islice(skipping, 100)) == list(islice(good, 100))


@pytest.mark.parametrize("shuffle", [1, 10])
def test_a_position_among_documents_that_are_left_out_is_taken_up(tmp_path: Path, shuffle: int) -> None:
    tokenizer = TextTokenizer(words_alone(), "</s>")

    def fresh() -> TokenWindows:
        return windows(source_of(tmp_path / "a.txt", lines(64, {0, 1, 17, 18, 19, 40, 63}), "skip"), tokenizer, shuffle)

    stream, seen = fresh(), []
    while stream.state_dict()["epoch"] < 2:
        state = json.loads(json.dumps(stream.state_dict()))
        seen.append((state, next(stream), stream.state_dict()))
    for state, window, after in seen[::3]:
        again = fresh()
        again.load_state_dict(state)
        assert (next(again), again.state_dict()) == (window, after)
    early = {key: value for key, value in seen[5][0].items() if key != "encodable"}  # of an earlier version
    again = fresh()
    again.load_state_dict(early)
    assert next(again) == seen[5][1]


def test_too_many_of_them_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = windows(
        source_of(tmp_path / "a.txt", lines(64, {1, 2, 3, 4}), "skip", 0.003), TextTokenizer(words_alone(), "</s>")
    )
    with pytest.raises(DataError, match=rf"4 of 5 documents of this epoch are bad, .* the last: .*line 5: {CANT}"):
        list(islice(stream, 64))
    assert len([record for record in caplog.records if CANT in record.message]) == 1


def test_each_epoch_counts_its_own(tmp_path: Path) -> None:
    stream = windows(
        source_of(tmp_path / "a.txt", lines(64, {1, 2, 3}), "skip", 0.003), TextTokenizer(words_alone(), "</s>")
    )
    while stream.state_dict()["epoch"] < 4:
        next(stream)
    assert stream.state_dict()["encodable"][1] <= 3


def test_held_out_documents_obey_the_same_rules(tmp_path: Path) -> None:
    texts = lines(300, set())
    held = [n for n, text in enumerate(texts) if is_validation(f"{text} {UNKNOWN}", 0.5)]
    texts = lines(300, set(held[:2]))

    def make(on_bad: str) -> torch.Tensor:
        return held_out_windows(
            source_of(tmp_path / "a.txt", texts, on_bad),
            TextTokenizer(words_alone(), "</s>"),
            sequence_tokens=7,
            windows=5,
            validation_fraction=0.5,
            cache_dir=tmp_path / on_bad,
        ).windows

    assert make("skip").shape == (5, 8)
    with pytest.raises(DataError, match=rf"a\.txt line {held[0] + 1}: {CANT}"):
        make("error")


def test_places_are_those_of_the_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", UNKNOWN]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n\n{{"text": "{UNKNOWN}"}}\n')
    (tmp_path / "a.txt").write_text(f"a\n\nb\n{UNKNOWN}\n")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "train.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    specs = {
        r"a\.parquet row group 1, row 2": SourceSpec("parquet", files=(str(tmp_path / "a.parquet"),)),
        r"a\.jsonl line 3": SourceSpec("jsonl", files=(str(tmp_path / "a.jsonl"),)),
        r"a\.txt line 4": SourceSpec("text", files=(str(tmp_path / "a.txt"),)),
        r"hub row 2": SourceSpec("hub", name=str(hub)),
    }
    for place, spec in specs.items():
        with pytest.raises(DataError, match=f"{place}: {CANT}"):
            list(islice(windows(open_source(spec), TextTokenizer(words_alone(), "</s>")), 9))


def test_text_that_is_typed_and_has_no_tokens_is_told() -> None:
    tokenizer = TextTokenizer(words_alone(), "</s>")
    assert tokenizer.encode("a b") == [1, 2]
    with pytest.raises(DataError, match=f"'a z': {CANT}"):
        tokenizer.encode("a z")


def test_errors_that_are_not_of_a_text_are_no_bad_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(words_alone(), "</s>")

    class Panic(BaseException):
        """As what Rust panics by."""

    def fail(error: BaseException) -> Callable[[object], object]:
        def encode(_: object) -> object:
            raise error

        return encode

    monkeypatch.setattr(tokenizer, "encode_many", fail(MemoryError()))
    with pytest.raises(MemoryError):
        tokenizer.encode_each(["a", "b"])
    monkeypatch.setattr(tokenizer, "encode_many", fail(Panic("index out of range")))
    assert tokenizer.encode_each(["a", "b"]) == [Fault("", f"{CANT} (index out of range)")] * 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (words_alone, "it has no token for what its vocabulary lacks, such as é"),
        (pieces_alone, "it has no token for what its vocabulary lacks, such as é"),
        (
            lambda: Tokenizer(models.BPE(vocab={"</s>": 0, "a": 1}, merges=[])),
            "it leaves out what its vocabulary lacks",
        ),
        (lambda: Tokenizer(models.BPE(vocab={"</s>": 0, "?": 1}, merges=[], unk_token="?")), None),
        (lambda: Tokenizer(models.WordLevel(vocab={"</s>": 0, "?": 1}, unk_token="?")), None),
    ],
)
def test_what_becomes_of_unknown_letters_is_told_when_it_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[], Tokenizer], told: str | None
) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path), None) is not None
    assert told is None or told in caplog.text
    assert ("byte_fallback" in caplog.text) == (told is not None)


def test_a_tokenizer_that_is_trained_here_has_tokens_for_all(
    tokenizer: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.save(tmp_path)
    assert load_tokenizer(str(tmp_path), None) is not None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(isinstance(ids, Fault) for ids in tokenizer.encode_each(list(tokenizer_module._RARE_LETTERS)))
