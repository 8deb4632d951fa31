"""Streams interrupted at random points: the tokens are those of one that was not."""

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.data.loader import BatchLoader
from smet_train.data.rules import ReadRules
from smet_train.data.sources import SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer
from tests.conftest import make_documents
from tests.data.serving import Server, serve

KINDS = ("text", "jsonl", "jsonl.gz", "parquet", "parquet over http", "jsonl.gz over http")
SEQUENCE_TOKENS = 16
PARTS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("www")) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "a.txt").write_text("\n\n".join(make_documents(100)))
    return prepare_tokenizer(
        open_source(SourceSpec("text", files=(str(folder / "a.txt"),))),
        file=None,
        hub_name=None,
        vocab_size=400,
        train_bytes=100_000,
        validation_fraction=0.1,
        cache_dir=folder,
    )


def write_corpus(kind: str, folder: Path, draw: random.Random) -> None:
    """Shards of some dozens of short documents, a few of them bad."""
    for number in range(draw.randint(2, 5)):
        texts = [" ".join(text.split()[:12]) for text in make_documents(draw.randint(1, 60), seed=draw.randrange(1000))]
        if kind.startswith("parquet"):
            rows = [None if draw.random() < 0.02 else text for text in texts]
            pq.write_table(pa.table({"text": rows}), folder / f"{number}.parquet", row_group_size=draw.randint(5, 40))
        elif kind == "text":
            lines = [text.encode() for text in texts]
            lines[draw.randrange(len(lines))] += b"\xff" if draw.random() < 0.3 else b"\r\n"
            (folder / f"{number}.txt").write_bytes(b"\n\n".join(lines))
        else:
            lines = [json.dumps({"text": text}).encode() for text in texts]
            lines = [line[:-2] if draw.random() < 0.02 else line for line in lines]
            content = b"\n".join(lines)
            name, content = ("jsonl.gz", gzip.compress(content)) if "gz" in kind else ("jsonl", content)
            (folder / f"{number}.{name}").write_bytes(content)


class Trial:
    """A corpus and the settings of a stream over it."""

    def __init__(self, kind: str, server: Server, tokenizer: TextTokenizer, draw: random.Random) -> None:
        self.kind = kind
        self.tokenizer = tokenizer
        self.draw = draw
        self.shuffle = draw.choice((1, 1, 2, 7, 30, 1000))
        self.seed = draw.randrange(100)
        self.batch = draw.randint(1, 3)
        folder = server.folder / str(draw.random())
        folder.mkdir()
        write_corpus(kind, folder, draw)
        names = sorted(path.name for path in folder.iterdir())
        base = f"{server.url}/{folder.name}" if "http" in kind else str(folder)
        self.files = tuple(f"{base}/{name}" for name in names)

    def loader(self, prefetch: int) -> BatchLoader:
        """A fresh one, over a fresh source."""
        rules = ReadRules(on_bad="skip", max_bad_fraction=1.0, retries=20)
        source = open_source(SourceSpec(self.kind.partition(".")[0].split()[0], files=self.files, rules=rules))
        windows = TokenWindows(
            source,
            self.tokenizer,
            sequence_tokens=SEQUENCE_TOKENS,
            seed=self.seed,
            shuffle_documents=self.shuffle,
            validation_fraction=0.1,
        )
        return BatchLoader(windows, micro_batch_size=self.batch, prefetch_batches=prefetch)

    def whole(self, epochs: int) -> tuple[list[Any], dict[str, Any]]:
        """All batches until ``epochs`` are over, and the state after them."""
        loader = self.loader(0)
        batches: list[Any] = []
        while loader.state_dict()["epoch"] < epochs and len(batches) < 2000:
            batches.append(next(loader).tolist())
        return batches, loader.state_dict()

    def interrupted(self, n_batches: int, times: int) -> tuple[list[Any], dict[str, Any]]:
        """The same by ``times + 1`` loaders, each of which begins with the state that the one before left."""
        state, batches = None, []
        ends = sorted(self.draw.randint(0, n_batches) for _ in range(times))
        for begin, end in itertools.pairwise([0, *ends, n_batches]):
            loader = self.loader(self.draw.randint(0, 8))
            if state is not None:
                loader.load_state_dict(json.loads(state))
            for _ in range(end - begin):
                if self.draw.random() < 0.1:
                    loader.peek(self.draw.randint(1, 3))
                batches.append(next(loader).tolist())
            state = json.dumps(loader.state_dict())
            loader.close()
        return batches, json.loads(state or "{}")


@pytest.mark.parametrize("part", range(PARTS))
def test_no_token_is_lost_or_repeated(
    campaign: Any, server: Server, tokenizer: TextTokenizer, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smet_train.data.retry.FIRST_WAIT_S", 0.0)
    with campaign("interrupted streams: no token lost or repeated", part=str(part)) as tally:
        for draw in tally.draws(few=6, every=500 // PARTS):
            server.draw, server.failing, server.ranges = random.Random(draw.random()), 0.0, draw.random() < 0.8
            trial = Trial(KINDS[(tally.tried + part) % len(KINDS)], server, tokenizer, draw)
            batches, state = trial.whole(draw.randint(1, 3))
            server.failing = draw.choice((0.0, 0.2))
            found, ended = trial.interrupted(len(batches), draw.randint(1, 6))
            same = found == batches and ended == json.loads(json.dumps(state))
            tally.note(None if same else f"{trial.kind}, shuffle {trial.shuffle}: the tokens or the state differ")
