"""Streams that are interrupted: no token lost, none repeated, in the order of a stream that was not."""

import gzip
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.data.loader import BatchLoader
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer
from smet_train.errors import DataError
from tests.conftest import make_documents
from tests.data.test_http import Handler

SEQUENCE_TOKENS = 20
KINDS = ("text", "jsonl", "jsonl.gz", "parquet", "parquet over http")
DOCUMENTS = (40, 25, 15)  # of each shard
BAD_LINE = '{"text": '


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of ``tmp_path``."""
    handler = partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def write(kind: str, folder: Path, address: str) -> SourceSpec:
    """Three shards of ``kind``; every eighth line of JSON is bad, to be left out."""
    names = []
    for number, size in enumerate(DOCUMENTS):
        texts = [f"{number}.{text}" for text in make_documents(size, seed=number)]
        lines = [BAD_LINE if i % 8 == 3 else json.dumps({"text": text}) for i, text in enumerate(texts)]
        path = folder / f"{number}.{kind.partition(' ')[0]}"
        if kind == "text":
            path.write_text("\n".join(texts), encoding="utf-8")
        elif kind.startswith("jsonl"):
            content = "\n".join(lines).encode()
            path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
        else:
            pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
        names.append(f"{address}/{path.name}" if "http" in kind else str(path))
    format_name = kind.partition(" ")[0].partition(".")[0]
    return SourceSpec(format_name, files=tuple(names), text_unit="line", skip_bad=format_name == "jsonl")


def loader(source: Source, tokenizer: TextTokenizer, shuffle: int, prefetch: int) -> BatchLoader:
    windows = TokenWindows(
        source,
        tokenizer,
        sequence_tokens=SEQUENCE_TOKENS,
        seed=3,
        shuffle_documents=shuffle,
        validation_fraction=0.1,
    )
    return BatchLoader(windows, micro_batch_size=2, prefetch_batches=prefetch)


def batches(reader: BatchLoader, count: int) -> list[Any]:
    return [next(reader).tolist() for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_streams_lose_and_repeat_nothing(tmp_path: Path, address: str, campaign: Any, kind: str) -> None:
    spec = write(kind, tmp_path, address)
    source = open_source(spec)
    tokenizer = prepare_tokenizer(
        source, file=None, hub_name=None, vocab_size=300, train_bytes=5000, validation_fraction=0.1,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    epoch = sum(len(tokenizer.encode(text)) + 1 for text in source.documents()) // (2 * SEQUENCE_TOKENS)
    ledgers: dict[int, list[Any]] = {}
    for shuffle in (1, 5, 1000):
        whole = loader(source, tokenizer, shuffle, 0)
        ledgers[shuffle] = batches(whole, 3 * epoch)
        whole.close()
    with campaign("interrupted streams: no token lost or repeated, same order", part=kind) as tally:
        for draw in tally.draws(few=3, every=100):
            shuffle = draw.choice(list(ledgers))
            expected = ledgers[shuffle][: draw.randint(epoch // 2, 3 * epoch)]
            tally.note(interrupted(spec, tokenizer, shuffle, expected, draw))


def interrupted(
    spec: SourceSpec, tokenizer: TextTokenizer, shuffle: int, expected: list[Any], draw: Random
) -> str | None:
    """Read as many batches in up to six parts, each from a source opened anew; what differs, if anything."""
    cuts = sorted(draw.randrange(len(expected)) for _ in range(draw.randint(1, 5)))
    state, got = None, []
    for start, end in zip([0, *cuts], [*cuts, len(expected)], strict=True):
        reader = loader(open_source(spec), tokenizer, shuffle, draw.randint(0, 8))
        if state is not None:
            reader.load_state_dict(json.loads(state))
        got += batches(reader, end - start)
        if draw.random() < 0.3:
            reader.peek(2)  # a topology update that looks at coming batches
        state = json.dumps(reader.state_dict())
        reader.close()
    return None if got == expected else f"shuffle {shuffle}, cut at {cuts}"


class Bad:
    """One way in which a shard of JSON lines may be wrong.

    ``make`` puts it at a line; ``row`` tells whether a row is bad, which can be left out, or the file, which can't.
    """

    def __init__(self, text: str, make: Callable[[list[bytes], int], bytes], *, row: bool) -> None:
        self.text = text
        self.make = make
        self.row = row


def with_line(line: bytes) -> Callable[[list[bytes], int], bytes]:
    return lambda lines, at: b"\n".join([*lines[:at], line, *lines[at + 1 :]])


BADS = [
    Bad("a line is not JSON", with_line(b'{"text": "open'), row=True),
    Bad("a line is not JSON", with_line(b"plain words"), row=True),
    Bad("a line holds a list, not a JSON object", with_line(b"[1, 2]"), row=True),
    Bad("a line holds a int, not a JSON object", with_line(b"17"), row=True),
    Bad("a row has no text", with_line(b'{"text": null}'), row=True),
    Bad("a row has no text", with_line(b'{"body": "other"}'), row=True),
    Bad("holds int, not text", with_line(b'{"text": 5}'), row=True),
    Bad("holds list, not text", with_line(b'{"text": ["a"]}'), row=True),
    Bad("a document of 5,000 characters", with_line(b'{"text": "' + b"x" * 5000 + b'"}'), row=True),
    Bad("not UTF-8|UnicodeDecodeError|codec can't decode", with_line(b'{"text": "caf\xe9"}'), row=True),
]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_bad_rows_are_told_or_left_out(tmp_path: Path, campaign: Any, on_bad: str) -> None:
    with campaign("bad lines: file and line told, or left out and counted", part=on_bad) as tally:
        for draw in tally.draws(few=20, every=150):
            bad = BADS[tally.tried % len(BADS)]
            texts = make_documents(draw.randint(3, 40), seed=tally.tried)
            lines = [json.dumps({"text": text}).encode() for text in texts]
            at = draw.randrange(1, len(lines))
            # datasets decodes compressed text by itself, so that bad bytes in it can't be left out
            compressed = draw.random() < 0.3 and not (on_bad == "skip" and "UTF-8" in bad.text)
            path = tmp_path / f"{tally.tried}.jsonl{'.gz' if compressed else ''}"
            content = bad.make(lines, at)
            path.write_bytes(gzip.compress(content) if compressed else content)
            good = [*texts[:at], *texts[at + 1 :]]
            tally.note(met(path, bad, at, good if on_bad == "skip" else None))


def met(path: Path, bad: Bad, at: int, good: list[str] | None) -> str | None:
    """What is wrong with how a bad line is met, if anything; ``good`` is what must be left, None if it must end."""
    spec = SourceSpec("jsonl", files=(str(path),), skip_bad=good is not None, longest_document=4000)
    read: list[str] = []
    try:
        stream = open_source(spec).documents()
        read.extend(stream)
    except DataError as error:
        told = str(error)
        if good is not None:
            return f"{bad.text}: it ends: {told}"
        where = path.name in told and (f"line {at + 1}" in told or "codec" in told or "byte" in told)
        advice = "data.on_bad=skip" in told
        return None if where and advice and re.search(bad.text, told) and "\n" not in told else told
    if good is None:
        return f"{bad.text}: it is read over"
    return (
        None if read == good and stream.bad == 1 else f"{bad.text}: {len(read)} of {len(good)}, {stream.bad} left out"
    )


def spoilt(kind: str, path: Path, draw: Random) -> None:
    texts = make_documents(200, seed=1)
    content = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    if kind == "cut gzip":
        whole = gzip.compress(content)
        path.write_bytes(whole[: draw.randint(20, len(whole) - 9)])
    elif kind == "flipped gzip":
        flipped = bytearray(gzip.compress(content))
        flipped[draw.randrange(len(flipped) // 2, len(flipped))] ^= 0xFF
        path.write_bytes(flipped)
    elif kind == "cut parquet":
        pq.write_table(pa.table({"text": texts}), path)
        path.write_bytes(path.read_bytes()[: draw.randint(8, 2000)])
    elif kind == "not parquet":
        path.write_bytes(b"words" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\0\1\2" * 100)


SPOILT = {
    "cut gzip": "jsonl.gz", "flipped gzip": "jsonl.gz", "cut parquet": "parquet", "not parquet": "parquet",
    "empty": "jsonl", "binary": "jsonl",
}  # fmt: skip


def test_files_that_can_not_be_read_are_named(tmp_path: Path, campaign: Any) -> None:
    with campaign("damaged, empty and foreign files: named, no traceback") as tally:
        for draw in tally.draws(few=6, every=60):
            kind = list(SPOILT)[tally.tried % len(SPOILT)]
            path = tmp_path / f"{tally.tried}.{SPOILT[kind]}"
            spoilt(kind, path, draw)
            try:
                list(open_source(SourceSpec(SPOILT[kind].partition(".")[0], files=(str(path),))).documents())
                tally.note(f"{kind}: it is read over")
            except DataError as error:
                tally.note(None if path.name in str(error) and "\n" not in str(error) else f"{kind}: {error}")
