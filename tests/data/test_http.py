"""Streaming without the hub: gzip-jsonl and parquet shards from a server on this machine."""

import gzip
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.config.schema import Config
from smet_train.data.rules import ReadRules
from smet_train.data.sources import SourceSpec, open_source
from smet_train.errors import DataError
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server: str, tmp_path: Path, documents: Callable[..., list[str]]) -> dict[str, list[str]]:
    """URLs by kind; two shards with 30 documents each."""
    urls: dict[str, list[str]] = {"jsonl": [], "parquet": []}
    for number in range(2):
        texts = documents(30, seed=number)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "www" / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        pq.write_table(pa.table({"text": texts}), tmp_path / "www" / f"{number}.parquet", row_group_size=10)
        urls["jsonl"].append(f"{server}/{number}.jsonl.gz")
        urls["parquet"].append(f"{server}/{number}.parquet")
    return urls


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_shards_are_streamed_and_positions_are_exact(
    served: dict[str, list[str]], documents: Callable[..., list[str]], kind: str
) -> None:
    source = open_source(SourceSpec(kind, files=tuple(served[kind])))
    assert list(source.documents()) == documents(30, seed=0) + documents(30, seed=1)
    assert "2 of them over http" in source.description
    whole = list(source.documents((3, 1)))
    stream = source.documents((3, 1))
    for _ in range(37):
        next(stream)
    assert list(source.documents((3, 1), stream.state_dict())) == whole[37:]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_run_trains_on_a_stream(
    served: dict[str, list[str]], quick_config: Callable[..., Config], tmp_path: Path, kind: str
) -> None:
    urls = ",".join(f"'{url}'" for url in served[kind])
    config = quick_config(f"data={kind}", f"data.files=[{urls}]", "data.text_unit=paragraph", "train.eval_windows=2")
    assert run_training(config, tmp_path / "run") == 0
    steps = [event["step"] for event in read_events(tmp_path / "run" / "metrics.jsonl") if event["event"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_an_address_without_a_file_or_a_server_is_told(server: str) -> None:
    with pytest.raises(DataError, match="answers 404") as told:
        open_source(SourceSpec("jsonl", files=(f"{server}/nothing.jsonl",)))
    assert told.value.exit_status == 2
    with pytest.raises(DataError, match="can't reach http://127.0.0.1:9/") as told:
        open_source(SourceSpec("jsonl", files=("http://127.0.0.1:9/a.jsonl",), rules=ReadRules(retries=0)))
    assert told.value.exit_status == 1
