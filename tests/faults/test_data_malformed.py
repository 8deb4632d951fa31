"""Malformed inputs: an error that names file and place, or left out, counted, and nothing else with them."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.config.schema import Config
from smet_train.data.rules import ReadRules
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.errors import DataError
from tests.conftest import make_documents
from tests.faults.trials import output, run, trace

pytestmark = pytest.mark.slow

LONGEST_BYTES = 2000
SHARDS = 4
GROUP_ROWS = 8

BAD_LINES: dict[str, Callable[[random.Random], bytes]] = {
    "not JSON": lambda _: b"this is not JSON",
    "JSON cut short": lambda draw: b'{"text": "a word an'[: draw.randint(1, 19)],
    "a list": lambda _: b'["text", "a word"]',
    "another field": lambda _: b'{"body": "a word"}',
    "null": lambda _: b'{"text": null}',
    "a number": lambda draw: b'{"text": %d}' % draw.randrange(10**6),
    "invalid UTF-8": lambda _: b'{"text": "caf\xe9 noir"}',
    "half a character": lambda _: b'{"text": "\\ud83d"}',
    "too long": lambda draw: b'{"text": "' + b"x" * draw.randint(LONGEST_BYTES, 300 * LONGEST_BYTES) + b'"}',
    "too deep": lambda _: b"[" * (LONGEST_BYTES - 1),
    "NUL bytes": lambda _: bytes(40),
}
BAD_PARAGRAPHS = ("invalid UTF-8", "too long")
BAD_ROWS = ("null", "too long", "invalid UTF-8")
BAD_FILES = ("cut short", "binary", "gone", "empty")
BAD_PARQUET = ("no footer", "damaged row group", "another column", "numbers", "gone", "empty")
CASES = [
    *(("jsonl", name) for name in BAD_LINES),
    *(("text", name) for name in BAD_PARAGRAPHS),
    *(("parquet", name) for name in BAD_ROWS),
    *(("jsonl.gz", name) for name in BAD_FILES),
    *(("parquet", name) for name in BAD_PARQUET),
]


@dataclass
class Corpus:
    """Shards of one kind, the texts that they hold, and what was done to one of them.

    Attributes:
        place: the fault's place in ``path``: "line 3", "row 3", or "" for the file.
        bad: how many documents are lost to the fault.
        lost_from: where the fault hits a file: (shard, text) from which on texts may be missing.
    """

    kind: str
    folder: Path
    draw: random.Random
    texts: list[list[str]] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    path: Path = Path()
    place: str = ""
    bad: int = 1
    lost_from: tuple[int, int] | None = None

    def write(self) -> None:
        for number in range(SHARDS):
            texts = make_documents(self.draw.randint(12, 40), seed=self.draw.randrange(1000))
            self.texts.append(texts)
            self.paths.append(self.folder / f"{number}.{self.kind.replace('text', 'txt')}")
            self.write_shard(number, [json.dumps({"text": text}).encode() for text in texts])

    def write_shard(self, number: int, lines: list[bytes]) -> None:
        path, texts = self.paths[number], self.texts[number]
        if self.kind == "parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=GROUP_ROWS, write_page_checksum=True)
        elif self.kind == "text":
            path.write_text("\n\n".join(texts))
        else:
            content = b"\n".join(lines)
            path.write_bytes(gzip.compress(content) if self.kind == "jsonl.gz" else content)

    def spoil(self, fault: str) -> None:
        """Put ``fault`` into a shard."""
        shard = self.draw.randrange(SHARDS)
        self.path, texts = self.paths[shard], self.texts[shard]
        at = self.draw.randrange(len(texts))
        if self.kind == "jsonl":
            lines = [json.dumps({"text": text}).encode() for text in texts]
            lines.insert(at, BAD_LINES[fault](self.draw))
            self.write_shard(shard, lines)
            self.place = f"line {at + 1}"
        elif self.kind == "text":
            bad = b"caf\xe9 noir" if fault == "invalid UTF-8" else b"x" * LONGEST_BYTES * 50
            paragraphs = [text.encode() for text in texts]
            paragraphs.insert(at, bad)
            self.path.write_bytes(b"\n\n".join(paragraphs))
            self.place = f"line {2 * at + 1}"
        elif self.kind == "parquet" and fault in BAD_ROWS:
            values: dict[str, bytes | None] = {
                "null": None, "too long": b"x" * LONGEST_BYTES * 50, "invalid UTF-8": b"\xff",
            }  # fmt: skip
            rows: list[bytes | None] = [text.encode() for text in texts]
            rows.insert(at, values[fault])
            column = pa.array(rows, pa.binary())
            column = pa.Array.from_buffers(pa.string(), len(column), column.buffers())
            pq.write_table(pa.table({"text": column}), self.path, row_group_size=GROUP_ROWS)
            self.place = f"row {at + 1}"
        else:
            self.spoil_file(shard, fault)

    def spoil_file(self, shard: int, fault: str) -> None:
        self.lost_from = (shard, 0)
        content = self.path.read_bytes()
        if fault == "cut short":
            self.path.write_bytes(content[: self.draw.randint(1, len(content) - 1)])
        elif fault == "binary":
            self.path.write_bytes(gzip.compress(bytes(self.draw.randrange(128, 256) for _ in range(5000)) + bytes(9)))
        elif fault == "empty":
            self.path.write_bytes(b"")
            self.bad = 0
        elif fault == "no footer":
            self.path.write_bytes(content[: self.draw.randint(4, len(content) - 1)])
        elif fault == "another column":
            pq.write_table(pa.table({"body": self.texts[shard]}), self.path)
        elif fault == "numbers":
            pq.write_table(pa.table({"text": list(range(5))}), self.path)
            self.bad = 5
            self.place = "row 1"
        elif fault == "damaged row group":
            groups = pq.ParquetFile(self.path).metadata
            group = self.draw.randrange(groups.num_row_groups)
            column = groups.row_group(group).column(0)
            begin = column.dictionary_page_offset or column.data_page_offset
            spoiled = bytearray(content)
            spoiled[begin : begin + column.total_compressed_size] = self.draw.randbytes(column.total_compressed_size)
            self.path.write_bytes(spoiled)
            self.place = f"row group {group + 1}"
            del self.texts[shard][group * GROUP_ROWS : (group + 1) * GROUP_ROWS]
            self.lost_from = None

    def open(self, on_bad: str) -> Source:
        rules = ReadRules(on_bad=on_bad, max_bad_fraction=0.01, max_document_bytes=LONGEST_BYTES)
        return open_source(
            SourceSpec(self.kind.removesuffix(".gz"), files=(f"{self.folder}/*",), text_unit="paragraph", rules=rules)
        )


def error_trial(corpus: Corpus, fault: str) -> str | None:
    """What is wrong with the error, if anything."""
    order = corpus.draw.choice((None, (1, 2)))
    try:
        source = corpus.open("error")
        if fault == "gone":
            corpus.path.unlink()
        found = list(source.documents(order))
    except DataError as error:
        told = str(error)
        if fault == "empty":
            return f"an empty shard is an error: {told}"
        if f"{corpus.path}{corpus.place and ' '}{corpus.place}" not in told or "data.on_bad=skip" not in told:
            return f"file, place ({corpus.place}) or remedy are not told: {told}"
        expected = 1 if fault == "gone" else 2
        return None if error.exit_status == expected else f"exit status {error.exit_status}: {told}"
    if fault == "empty":
        return None if sorted(found) == sorted(good_texts(corpus)) else "other documents"
    return "no error"


def good_texts(corpus: Corpus) -> list[str]:
    """Those of all shards but a spoiled one."""
    lost = None if corpus.lost_from is None else corpus.lost_from[0]
    return [text for number, texts in enumerate(corpus.texts) if number != lost for text in texts]


def skip_trial(corpus: Corpus, fault: str) -> str | None:
    """What is wrong with the documents that are left, if anything."""
    order = corpus.draw.choice((None, (1, 2)))
    source = corpus.open("skip")
    if fault == "gone":
        corpus.path.unlink()
    stream = source.documents(order)
    found = list(stream)
    if stream.bad != corpus.bad:
        return f"{stream.bad} counted, not {corpus.bad}"
    expected = good_texts(corpus)
    salvaged = set(found) - set(expected)
    if corpus.lost_from is not None and fault == "cut short":
        beginning = corpus.texts[corpus.lost_from[0]][: len(found) - len(expected)]
        if not salvaged <= set(beginning):
            return "other documents than the beginning of the file that is cut short"
        expected += beginning
    if sorted(found) != sorted(expected):
        return f"{len(found)} documents, not the {len(expected)} good ones"
    at = corpus.draw.randint(0, len(found))
    first = source.documents(order)
    for _ in range(at):
        next(first)
    second = source.documents(order, json.loads(json.dumps(first.state_dict())))
    if list(second) != found[at:] or second.bad != corpus.bad:
        return f"a position after {at} documents is not taken up"
    return None


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_malformed_inputs(campaign: Any, tmp_path: Path, on_bad: str) -> None:
    told = "the error names file and place" if on_bad == "error" else "left out and counted, nothing else"
    trial = error_trial if on_bad == "error" else skip_trial
    with campaign(f"malformed inputs, {on_bad}: {told}") as tally:
        for draw in tally.draws(few=len(CASES), every=150):
            kind, fault = CASES[tally.tried % len(CASES)]
            folder = tmp_path / str(tally.tried)
            folder.mkdir()
            corpus = Corpus(kind, folder, draw)
            corpus.write()
            corpus.spoil(fault)
            wrong = trial(corpus, fault)
            tally.note(wrong and f"{kind}, {fault}: {wrong}")


@pytest.mark.parametrize("way", ["skip in another folder", "mend the file"])
def test_a_run_that_a_bad_line_has_ended_goes_on(quick_config: Callable[..., Config], tmp_path: Path, way: str) -> None:
    lines = [json.dumps({"text": text}) for text in make_documents(70)]
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("\n".join([*lines[:60], "broken", *lines[60:]]))
    settings = [
        "model.layers=1", "data=jsonl", f"data.files=['{corpus}']", "data.text_unit=paragraph",
        "data.shuffle_documents=10", "data.prefetch_batches=2", "data.tokenizer.train_bytes=5000",
        "train.eval_windows=1", "tracking.probe_windows=0", "train.steps=40",
        "train.eval_interval=0", "topology.interval=15",
    ]  # fmt: skip
    first = tmp_path / "first"
    assert run(quick_config(*settings), first) == 2, output(first)
    assert f"{corpus} line 61: it is not JSON" in output(first)
    (saved,) = [path for path in (first / "checkpoints").iterdir() if path.name.startswith("step_")][-1:]
    assert saved.name > "step_00000002"
    if way == "mend the file":
        corpus.write_text("\n".join(lines))
        folder, config = first, quick_config(*settings, "data.allow_changed_source=true")
    else:
        folder = tmp_path / "second"
        config = quick_config(*settings, "data.on_bad=skip", f"checkpoint.resume='{saved}'")
    assert run(config, folder) == 0, output(folder)
    assert max(event["step"] for event in trace(folder) if event["event"] == "train") == 40
