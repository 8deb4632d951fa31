"""What it costs to take up a position deep inside a file: seconds to the first batch there over those at its beginning.

    python benchmarks/resume_cost.py [--documents 10000000] [--before 0] [--kinds text jsonl ...] [--out FILE]

Both arms open the source, whose hash is remembered, take up a state, and read, shuffle and tokenize one block of 1000
documents, in turn, 25 times each; the median counts. A compressed file is decompressed again from its beginning, which
no bar is set for; in a Parquet file the position is the end of a row group. Inside one the group is read from its
beginning: `--documents 9950000 --before 50000` holds the middle of the last group against the middle of the first.
"""

import argparse
import gzip
import json
import shutil
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smet_train.bench.result import measured_on
from smet_train.data.loader import BatchLoader
from smet_train.data.sources import SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer

KINDS = ("text", "jsonl", "jsonl.gz", "parquet")
BARRED = ("text", "jsonl", "parquet")
LARGEST_RATIO, LONGEST_S = 1.2, 2.0
REPEATS = 25
MORE_DOCUMENTS = 20_000  # after the position
SEED = 1
_WRITTEN_AT_ONCE = 100_000


def write_corpus(kind: str, folder: Path, n_documents: int) -> Path:
    """One file of ``n_documents`` short documents; the compressed one is made from the plain one if that is there."""
    path = folder / f"corpus.{kind}"
    if kind == "jsonl.gz":
        plain = folder / "corpus.jsonl"
        if not plain.exists():
            write_corpus("jsonl", folder, n_documents)
        with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        return path
    if kind == "parquet":
        with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as writer:
            for begin in range(0, n_documents, _WRITTEN_AT_ONCE):
                writer.write_table(pa.table({"text": _texts(begin, n_documents)}))
        return path
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, n_documents, _WRITTEN_AT_ONCE):
            texts = _texts(begin, n_documents)
            file.writelines(f"{text}\n" if kind == "text" else f'{{"text": "{text}"}}\n' for text in texts)
    return path


def _texts(begin: int, n_documents: int) -> list[str]:
    return [
        f"{number * 2654435761 % 2**32:08x} sites move, counts stay"
        for number in range(begin, min(begin + _WRITTEN_AT_ONCE, n_documents))
    ]


class Reader:
    """Opens one file as a run does."""

    def __init__(self, kind: str, path: Path, cache_dir: Path) -> None:
        self.spec = SourceSpec(kind.partition(".")[0], files=(str(path),), text_unit="line")
        self.cache_dir = cache_dir
        self.tokenizer: TextTokenizer = prepare_tokenizer(
            open_source(self.spec, cache_dir),
            file=None,
            hub_name=None,
            vocab_size=1000,
            train_bytes=1_000_000,
            validation_fraction=0.01,
            cache_dir=cache_dir,
        )

    def windows(self) -> TokenWindows:
        return TokenWindows(
            open_source(self.spec, self.cache_dir),
            self.tokenizer,
            sequence_tokens=256,
            seed=SEED,
            shuffle_documents=1000,
            validation_fraction=0.01,
        )

    def state_after(self, n_documents: int) -> dict[str, Any]:
        """The state of a run that has read so many documents in whole blocks."""
        stream = open_source(self.spec, self.cache_dir).documents((SEED, 0))
        for _ in islice(stream, n_documents):
            pass
        state = self.windows().state_dict()
        return {**state, "block": n_documents // 1000, "block_state": stream.state_dict()}

    def first_batch_s(self, state: dict[str, Any]) -> float:
        started_s = time.perf_counter()
        loader = BatchLoader(self.windows(), micro_batch_size=16, prefetch_batches=0)
        loader.load_state_dict(json.loads(json.dumps(state)))
        next(loader)
        return time.perf_counter() - started_s


def measure(kind: str, folder: Path, before: int, n_documents: int) -> dict[str, Any]:
    """Figures of one kind of file: a start after ``n_documents`` against one after ``before``."""
    path = write_corpus(kind, folder, n_documents + MORE_DOCUMENTS)
    time.sleep(2.5)  # a file written a moment ago isn't remembered by its times
    started_s = time.perf_counter()
    reader = Reader(kind, path, folder / "cache")
    first_start_s = time.perf_counter() - started_s
    state = reader.state_after(n_documents)
    early = reader.state_after(before) if before else reader.windows().state_dict()
    times = [(reader.first_batch_s(early), reader.first_batch_s(state)) for _ in range(REPEATS)]
    early_s, resumed_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "kind": kind,
        "file_bytes": path.stat().st_size,
        "documents": n_documents,
        "first_start_s": first_start_s,
        "first_batch_before_s": early_s,
        "first_batch_resumed_s": resumed_s,
        "ratio": resumed_s / early_s,
        "state_bytes": len(json.dumps(state)),
        "all_s": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--before", type=int, default=0, help="documents before the position it is held against")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.kinds:
            row = measure(kind, Path(folder), chosen.before, chosen.documents)
            rows.append(row)
            print(
                f"{kind:9} {row['file_bytes'] / 1e6:6.0f} MB: "
                f"first batch {row['first_batch_before_s']:.3f} s at {chosen.before:,}, "
                f"{row['first_batch_resumed_s']:.3f} s at {chosen.documents:,} documents, ratio {row['ratio']:.2f}",
                flush=True,
            )
    bars = [
        {"name": f"{row['kind']}: {what}", "value": row[key], "bar": bar, "holds": row[key] <= bar}
        for row in rows
        if row["kind"] in BARRED
        for what, key, bar in (
            (f"first batch on resume over that at {chosen.before}", "ratio", LARGEST_RATIO),
            ("seconds to the first batch on resume", "first_batch_resumed_s", LONGEST_S),
        )
    ]
    if chosen.out is not None:
        where = f"--documents {chosen.documents} --before {chosen.before}"
        command = f"python benchmarks/resume_cost.py {where} --kinds {' '.join(chosen.kinds)}"
        result = {"benchmark": "resume_cost", **measured_on(), "command": command, "bars": bars, "rows": rows}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
