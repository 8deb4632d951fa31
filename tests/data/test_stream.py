"""Windows: what they hold, in which order, and that any position can be taken up again exactly."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from smet_train.data.loader import BatchLoader
from smet_train.data.rules import ReadRules
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.split import is_validation
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer
from smet_train.data.validation import held_out_windows
from smet_train.errors import DataError

SEQUENCE_TOKENS = 20


def windows(
    source: Source, tokenizer: TextTokenizer, *, shuffle: int = 16, seed: int = 1, held: float = 0.1
) -> TokenWindows:
    return TokenWindows(
        source,
        tokenizer,
        sequence_tokens=SEQUENCE_TOKENS,
        seed=seed,
        shuffle_documents=shuffle,
        validation_fraction=held,
    )


def epoch_documents(source: Source, tokenizer: TextTokenizer, stream: TokenWindows) -> list[str]:
    """The documents of the first epoch in the order of the stream, glued together from its windows."""
    training = [text for text in source.documents() if not is_validation(text, 0.1)]
    n_tokens = sum(len(tokenizer.encode(text)) + 1 for text in training)
    ids: list[int] = []
    while len(ids) < n_tokens:
        window = next(stream)
        assert len(window) == SEQUENCE_TOKENS + 1
        # each begins with the last token of the one before it
        assert window[0] == (ids[-1] if ids else tokenizer.eos_id)
        ids += window[1:]
    texts = tokenizer.decode(ids[:n_tokens]).split("<|endoftext|>")
    assert texts.pop() == ""
    return texts


@pytest.mark.parametrize("shuffle", [1, 2, 16, 10_000])
def test_an_epoch_holds_every_training_document_once(source: Source, tokenizer: TextTokenizer, shuffle: int) -> None:
    seen = epoch_documents(source, tokenizer, windows(source, tokenizer, shuffle=shuffle))
    training = [text for text in source.documents() if not is_validation(text, 0.1)]
    assert Counter(seen) == Counter(training)
    assert (seen == training) == (shuffle == 1)


def test_the_order_is_a_function_of_the_seed(source: Source, tokenizer: TextTokenizer) -> None:
    first, again, other = (list(islice(windows(source, tokenizer, seed=seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("shuffle", [1, 16, 10_000])
def test_epochs_differ_when_shuffled(source: Source, tokenizer: TextTokenizer, shuffle: int) -> None:
    stream = windows(source, tokenizer, shuffle=shuffle)
    n_tokens = sum(len(tokenizer.encode(text)) + 1 for text in source.documents() if not is_validation(text, 0.1))
    ids = [token for window in islice(stream, 2 * n_tokens // SEQUENCE_TOKENS + 1) for token in window[1:]]
    first, second = ids[:n_tokens], ids[n_tokens : 2 * n_tokens]
    assert Counter(first) == Counter(second)
    assert (first == second) == (shuffle == 1)


@pytest.mark.parametrize("shuffle", [1, 7, 10_000])
@pytest.mark.parametrize("prefetch", [0, 1, 5])
@pytest.mark.parametrize("at", [0, 1, 13, 60, 150])
def test_a_position_is_taken_up_exactly(
    source: Source, tokenizer: TextTokenizer, shuffle: int, prefetch: int, at: int
) -> None:
    """Also in the second epoch, and whatever the reader had read ahead."""
    loader = BatchLoader(windows(source, tokenizer, shuffle=shuffle), micro_batch_size=2, prefetch_batches=prefetch)
    for _ in range(at):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    expected = [next(loader) for _ in range(30)]
    loader.close()
    resumed = BatchLoader(windows(source, tokenizer, shuffle=shuffle), micro_batch_size=2, prefetch_batches=prefetch)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for batch in expected:
        assert torch.equal(next(resumed), batch)
    # and back again in the same loader
    resumed.load_state_dict(state)
    assert torch.equal(next(resumed), expected[0])
    resumed.close()


def test_batches_are_int64_windows_and_the_state_does_not_grow(source: Source, tokenizer: TextTokenizer) -> None:
    loader = BatchLoader(windows(source, tokenizer), micro_batch_size=3, prefetch_batches=2)
    sizes = set()
    for _ in range(100):
        batch = next(loader)
        assert (batch.shape, batch.dtype) == ((3, SEQUENCE_TOKENS + 1), torch.int64)
        sizes.add(len(json.dumps(loader.state_dict())) // 200)
    assert len(sizes) <= 3
    loader.close()


def test_reading_ahead_works_on_the_embedded_source(tokenizer: TextTokenizer) -> None:
    """Its reader opens files in the thread; a copy of the data set made there used to fail."""
    stream = windows(open_source(SourceSpec("python_source")), tokenizer)
    loader = BatchLoader(stream, micro_batch_size=1, prefetch_batches=2)
    assert next(loader).shape == (1, SEQUENCE_TOKENS + 1)
    loader.close()


def test_an_error_in_the_reader_reaches_the_caller_each_time(shards: list[Path], tokenizer: TextTokenizer) -> None:
    source = open_source(SourceSpec("text", files=tuple(map(str, shards)), text_unit="line"))
    loader = BatchLoader(windows(source, tokenizer, held=1 - 1e-12), micro_batch_size=1, prefetch_batches=2)
    for _ in range(2):
        with pytest.raises(DataError, match="has no training document: all fall into the validation split"):
            next(loader)
    loader.close()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seed", "belongs to seed=9, not seed=1"),
        ("data.shuffle_documents", "belongs to data.shuffle_documents=9, not data.shuffle_documents=16"),
        ("source", "the data source has changed since the checkpoint was written"),
        ("tokenizer", "the data tokenizer has changed since the checkpoint was written"),
    ],
)
def test_a_position_of_other_data_is_refused(source: Source, tokenizer: TextTokenizer, key: str, message: str) -> None:
    stream = windows(source, tokenizer)
    state = stream.state_dict()
    state["identity"][key] = 9
    with pytest.raises(DataError, match=message):
        stream.load_state_dict(state)
    with pytest.raises(DataError, match="has format 0, not 2"):
        stream.load_state_dict({**state, "format": 0})


def test_validation_windows_hold_the_held_out_documents_alone(
    source: Source, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    held = [text for text in source.documents() if is_validation(text, 0.1)]
    assert 5 < len(held) < 25
    found = held_out_windows(
        source, tokenizer, sequence_tokens=SEQUENCE_TOKENS, windows=10_000, validation_fraction=0.1, cache_dir=tmp_path
    ).windows
    assert torch.equal(found[1:, 0], found[:-1, -1])
    text = tokenizer.decode(found[:, 1:].flatten().tolist())
    assert "<|endoftext|>".join(held).startswith(text.removesuffix("<|endoftext|>"))
    assert len(found) == sum(len(tokenizer.encode(document)) + 1 for document in held) // SEQUENCE_TOKENS


def test_validation_windows_are_cached_and_a_damaged_cache_is_made_again(
    source: Source, tokenizer: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(folder: Path = tmp_path) -> torch.Tensor:
        return held_out_windows(
            source, tokenizer, sequence_tokens=SEQUENCE_TOKENS, windows=3, validation_fraction=0.1, cache_dir=folder
        ).windows

    first = make()
    assert first.shape == (3, SEQUENCE_TOKENS + 1)
    (cached,) = (tmp_path / "validation").iterdir()
    stamp = cached.stat().st_mtime_ns
    assert torch.equal(make(), first)
    assert cached.stat().st_mtime_ns == stamp
    cached.write_bytes(cached.read_bytes()[:-30])
    assert torch.equal(make(), first)
    assert "is damaged" in caplog.text
    (tmp_path / "a_file").touch()
    assert torch.equal(make(tmp_path / "a_file"), first)
    assert "can't write the cache" in caplog.text


def test_too_little_held_out_text_is_an_error(source: Source, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"of \d+ documents, .*not one window of data.sequence_tokens=100000; raise data.validation_fract",
    ):
        held_out_windows(
            source, tokenizer, sequence_tokens=100_000, windows=3, validation_fraction=0.1, cache_dir=tmp_path
        )


def test_one_document_cannot_be_split(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """As one file read whole: no fraction gives both sides a document."""
    (tmp_path / "input.txt").write_text("sites move\n\n" * 100)
    whole = open_source(SourceSpec("text", files=(str(tmp_path / "input.txt"),), text_unit="document"))
    with pytest.raises(DataError, match="of 1 documents.*; with 1 document .* write data.text_unit=paragraph or line"):
        held_out_windows(whole, tokenizer, sequence_tokens=8, windows=3, validation_fraction=0.01, cache_dir=tmp_path)


def test_windows_without_long_documents_are_others(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The same file, read under other rules, is not found in the cache of the first."""
    texts = [f"{number} sites move " * (1 + 30 * (number % 2)) for number in range(100)]
    (tmp_path / "lines.txt").write_text("\n".join(texts))

    def held_out(cache_dir: Path, longest_bytes: int) -> torch.Tensor:
        rules = ReadRules(on_bad="skip", max_bad_fraction=1, max_document_bytes=longest_bytes)
        spec = SourceSpec("text", files=(str(tmp_path / "lines.txt"),), text_unit="line", rules=rules)
        return held_out_windows(
            open_source(spec), tokenizer, sequence_tokens=8, windows=9, validation_fraction=0.5, cache_dir=cache_dir
        ).windows

    fresh, all_documents = held_out(tmp_path / "fresh", 100), held_out(tmp_path / "shared", 10_000)
    assert not torch.equal(fresh, all_documents)
    assert torch.equal(held_out(tmp_path / "shared", 100), fresh)


def test_no_windows_read_nothing(source: Source, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    none = held_out_windows(
        source, tokenizer, sequence_tokens=5, windows=0, validation_fraction=0.1, cache_dir=tmp_path
    ).windows
    assert none.shape == (0, 6)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_peeking_shows_what_comes_and_keeps_the_position(
    source: Source, tokenizer: TextTokenizer, prefetch: int
) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(windows(source, tokenizer), micro_batch_size=2, prefetch_batches=prefetch)

    plain, peeking = loader(), loader()
    expected = [next(plain) for _ in range(12)]
    for first in range(0, 10, 2):
        before = peeking.state_dict()
        shown = peeking.peek(3)
        assert peeking.state_dict() == before
        assert all(torch.equal(a, b) for a, b in zip(shown, expected[first : first + 3], strict=False))
        assert torch.equal(next(peeking), expected[first])
        assert torch.equal(next(peeking), expected[first + 1])
    peeking.peek(2)
    resumed = loader()
    resumed.load_state_dict(peeking.state_dict())
    assert torch.equal(next(resumed), expected[10])
    for each in (plain, peeking, resumed):
        each.close()


def test_peeking_at_a_source_that_fails_is_an_error(source: Source, tokenizer: TextTokenizer) -> None:
    loader = BatchLoader(windows(source, tokenizer, held=1 - 1e-12), micro_batch_size=1, prefetch_batches=0)
    for _ in range(2):
        with pytest.raises(DataError, match="has no training document"):
            loader.peek(1)
