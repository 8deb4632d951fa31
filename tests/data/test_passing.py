"""Failures that pass are waited for; those that don't end a run with what it can be told to do."""

import errno
import gzip
import json
import random
import re
import socket
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.data import opened
from smet_train.data.files import check_text_head, readable_files
from smet_train.data.hub import HubStream
from smet_train.data.loader import BatchLoader
from smet_train.data.remote import RemoteFile, is_missing, is_passing, quoted_url
from smet_train.data.retry import Retries, retried
from smet_train.data.rules import ReadRules
from smet_train.data.sources import SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError
from tests.data.serving import Server, serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serve(tmp_path / "www") as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smet_train.data.retry.FIRST_WAIT_S", 0.0)


def http_error(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://x/a", code, "why", Message(), None)


@pytest.mark.parametrize(
    ("error", "passing", "missing"),
    [
        (http_error(503), True, False),
        (http_error(429), True, False),
        (http_error(403), False, False),
        (http_error(404), False, True),
        (urllib.error.URLError("refused"), True, False),
        (TimeoutError(), True, False),
        (ConnectionResetError(), True, False),
        (OSError(errno.EIO, "input/output error"), True, False),
        (OSError(errno.ESTALE, "stale"), True, False),
        (FileNotFoundError(), False, True),
        (PermissionError(errno.EACCES, "no"), False, False),
        (OSError("Invalid data stream"), False, False),
        (ValueError(), False, False),
    ],
)
def test_which_failures_pass(error: Exception, passing: bool, missing: bool) -> None:
    assert (is_passing(error), is_missing(error)) == (passing, missing)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("kind", ["text", "jsonl.gz", "parquet"])
def test_lost_connections_and_busy_servers_lose_nothing(
    server: Server, documents: Callable[..., list[str]], kind: str, ranges: bool
) -> None:
    texts = documents(300)
    path = server.folder / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=50)
    elif kind == "text":
        path.write_text("\n".join(texts))
    else:
        path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    server.ranges, server.failing, server.draw = ranges, 0.4, random.Random(kind)
    rules = ReadRules(retries=30)
    source = open_source(
        SourceSpec(kind.partition(".")[0], files=(f"{server.url}/a.{kind}",), text_unit="line", rules=rules)
    )
    for _ in range(5):
        assert list(source.documents()) == texts
    assert len(server.requests) > 6


def test_a_server_that_stays_away_ends_the_run_after_what_was_read(
    server: Server, documents: Callable[..., list[str]], tokenizer: TextTokenizer
) -> None:
    """Every batch before the failure is handed out, also those that were read ahead."""
    urls = []
    for number in range(2):
        (server.folder / f"{number}.txt").write_text("\n".join(documents(100, seed=number)))
        urls.append(f"{server.url}/{number}.txt")
    source = open_source(SourceSpec("text", files=tuple(urls), text_unit="line", rules=ReadRules(retries=2)))

    def loader(prefetch: int) -> BatchLoader:
        windows = TokenWindows(
            source, tokenizer, sequence_tokens=20, seed=1, shuffle_documents=1, validation_fraction=0.1
        )
        return BatchLoader(windows, micro_batch_size=1, prefetch_batches=prefetch)

    counts: list[int] = []
    (server.folder / "1.txt").rename(server.folder / "kept")
    for prefetch in (0, 3):
        first = loader(prefetch)
        with pytest.raises(DataError, match=r"1\.txt: it is not there any more") as told:
            list(first)
        assert told.value.exit_status == 1
        assert first.state_dict()["documents"] > 80
        counts.append(first.state_dict()["tokens"] // 20)
        first.close()
        state = first.state_dict()
    assert counts[0] == counts[1] > 10
    server.failing = 1.0
    with pytest.raises(DataError, match=r"can't reach .*, after data.retries=2 further tries") as told:
        list(source.documents())
    assert told.value.exit_status == 1
    (server.folder / "kept").rename(server.folder / "1.txt")
    server.failing = 0.0
    again, straight = loader(2), loader(0)
    again.load_state_dict(state)
    expected = [next(straight).tolist() for _ in range(counts[0] + 20)]
    assert [next(again).tolist() for _ in range(20)] == expected[counts[0] :]
    again.close()


def test_a_refusal_is_told_at_once(server: Server) -> None:
    (server.folder / "a.txt").write_text("words")
    source = open_source(SourceSpec("text", files=(f"{server.url}/a.txt",)))
    server.get_status = 403
    with pytest.raises(DataError, match=r"a\.txt can't be read: HTTP Error 403") as told:
        list(source.documents())
    assert told.value.exit_status == 1


def test_a_disk_that_fails_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    source = open_source(SourceSpec("text", files=(str(tmp_path / "a.txt"),), text_unit="line"))
    failures = [OSError(errno.EIO, "input/output error")] * 3

    def open_raw(name: str, real: Callable[[str], object] = opened.open_raw) -> object:
        if failures:
            raise failures.pop()
        return real(name)

    monkeypatch.setattr(opened, "open_raw", open_raw)
    assert list(source.documents()) == ["one", "two"]
    assert failures == []


def test_a_passing_failure_under_parquet_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    source = open_source(SourceSpec("parquet", files=(str(tmp_path / "a.parquet"),)))
    failures = [OSError(errno.EIO, "input/output error")]

    def fail(*_: object, **__: object) -> object:
        if failures:
            raise failures.pop()
        return real(*_, **__)

    real = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", fail)
    assert list(source.documents()) == ["one", "two"]
    assert failures == []


def test_waiting_ends_when_the_loader_is_closed(
    server: Server, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (server.folder / f"{name}.txt").write_text("words and more words\n" * 300)
    urls = (f"{server.url}/a.txt", f"{server.url}/b.txt")
    source = open_source(SourceSpec("text", files=urls, text_unit="line"))
    waiting = threading.Event()
    wait = Retries.wait

    def told(self: Retries, where: str, error: Exception) -> None:
        waiting.set()
        wait(self, where, error)

    monkeypatch.setattr(Retries, "wait", told)
    monkeypatch.setattr("smet_train.data.retry.FIRST_WAIT_S", 60.0)
    (server.folder / "b.txt").rename(server.folder / "kept")
    monkeypatch.setattr("smet_train.data.shards.is_missing", lambda _: False)
    monkeypatch.setattr("smet_train.data.shards.is_passing", lambda _: True)
    windows = TokenWindows(source, tokenizer, sequence_tokens=20, seed=1, shuffle_documents=1, validation_fraction=0.1)
    loader = BatchLoader(windows, micro_batch_size=1, prefetch_batches=10_000)
    next(loader)  # so that the reader reads on, to the second file
    assert waiting.wait(30)
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()


def test_failures_are_counted_in_a_row() -> None:
    failures = [ConnectionError("lost")] * 2

    def action() -> int:
        if failures:
            raise failures.pop()
        return 7

    assert retried(action, "here", 2) == 7
    with pytest.raises(PermissionError):
        retried(lambda: (_ for _ in ()).throw(PermissionError()), "here", 2)
    retries = Retries(1)
    for _ in range(5):
        retries.wait("here", ConnectionError("lost"))
        retries.worked()
    retries.wait("here", ConnectionError("lost"))
    with pytest.raises(DataError, match="can't reach here: ConnectionError: lost, after data.retries=1"):
        retries.wait("here", ConnectionError("lost"))


def test_an_address_is_sent_as_a_server_understands_it(server: Server) -> None:
    (server.folder / "a%20%C3%A9.txt").write_text("one\ntwo\n")  # the server looks up the path as it was sent
    for name in ("a é.txt", "a%20%C3%A9.txt"):
        source = open_source(SourceSpec("text", files=(f"{server.url}/{name}",), text_unit="line"))
        assert list(source.documents()) == ["one", "two"]
    assert quoted_url("https://host:8/a/b.txt?key=a%2Fb&x=[1]#part") == "https://host:8/a/b.txt?key=a%2Fb&x=[1]#part"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://host:99999/a.txt", "Port out of range 0-65535"),
        ("http://host:80a/a.txt", "Port could not be cast to integer value as '80a'"),
        ("http:///a.txt", "it names no host"),
        ("https://", "it names no host"),
        ("http://[::1/a.txt", "Invalid IPv6 URL"),
    ],
)
def test_an_address_that_can_not_be_one_is_told_at_once(url: str, why: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"data.files: {url} is not a URL ({why}); write https://HOST/PATH")):
        open_source(SourceSpec("text", files=(url,)))


def test_an_address_with_a_password_is_told_at_once() -> None:
    with pytest.raises(DataError, match=r"http://me:word@host/a.txt can't be fetched \(nonnumeric port: 'word@host'\)"):
        open_source(SourceSpec("text", files=("http://me:word@host/a.txt",)))


def test_an_answer_that_is_not_http_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smet_train.data.retry.FIRST_WAIT_S", 0.001)
    asked = 0

    def answer(listening: socket.socket) -> None:
        nonlocal asked
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    asked += 1
                    connection.recv(10_000)
                    connection.sendall(b"who is there?\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.txt"
        with pytest.raises(DataError, match=r"can't reach .*BadStatusLine.*, after data.retries=2 further tries"):
            open_source(SourceSpec("text", files=(url,), rules=ReadRules(retries=2)))
        assert asked == 3
        with RemoteFile(url) as file, pytest.raises(ConnectionError, match="BadStatusLine"):
            file.read(1)


def test_what_is_thrown_away_before_a_position_may_end_early(server: Server) -> None:
    (server.folder / "a").write_bytes(bytes(5000))
    server.ranges, server.failing = False, 1.0
    server.draw = random.Random(2)  # an answer that is cut short
    with RemoteFile(f"{server.url}/a") as file:
        file.seek(4990)
        with pytest.raises(ConnectionError, match="IncompleteRead|the connection ended"):
            file.read(1)


def test_parquet_needs_a_server_that_tells_how_long_a_file_is(server: Server) -> None:
    pq.write_table(pa.table({"text": ["one"]}), server.folder / "a.parquet")
    server.tells_length = False
    with pytest.raises(DataError, match=r"its server does not tell how long it is \(no Content-Length\)"):
        open_source(SourceSpec("parquet", files=(f"{server.url}/a.parquet",)))


def test_a_remote_file_is_read_from_anywhere(server: Server) -> None:
    content = bytes(random.Random(1).randbytes(5000))
    (server.folder / "a").write_bytes(content)
    for server.ranges in (True, False):
        with RemoteFile(f"{server.url}/a") as file:
            assert file.readable()
            assert file.seekable()
            assert file.seek(-10, 2) == file.tell() == 4990
            assert file.readall() == content[-10:]
            assert file.seek(100) == 100
            assert (file.read(50), file.tell()) == (content[100:150], 150)
            assert file.seek(50, 1) == 200
            assert file.read(1) == content[200:201]
        with RemoteFile(f"{server.url}/a") as file:
            file.seek(5000)
            assert file.read(10) == b""


class Rows:
    """A data set of the hub that fails twice at its third row."""

    failures = 0

    def __init__(self, error: Exception, first: str = "text 1") -> None:
        self.error = error
        self.first = first
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]

    def __iter__(self) -> Iterator[dict[str, str | None]]:
        while self.at < 6:
            if self.at == 3 and Rows.failures < 2:
                Rows.failures += 1
                raise self.error
            self.at += 1
            yield {"text": None if self.at == 2 else self.first if self.at == 1 else f"text {self.at}"}


def hub_stream(error: Exception, on_bad: str, state: dict[str, Any] | None = None) -> HubStream:
    Rows.failures = 0
    rules = ReadRules(on_bad=on_bad, retries=2)
    return HubStream(
        lambda: Rows(error), field="text", columns=["text"], name="a/b", rules=rules, told=set(), state=state
    )


def test_the_hub_is_asked_again_from_the_row_where_it_failed() -> None:
    stream = hub_stream(ConnectionError("lost"), "skip")
    expected = [f"text {number}" for number in (1, 3, 4, 5, 6)]
    assert (list(stream), stream.bad) == (expected, 1)
    stream = hub_stream(ConnectionError("lost"), "skip")
    assert [next(stream), next(stream)] == expected[:2]
    again = hub_stream(ConnectionError("lost"), "skip", json.loads(json.dumps(stream.state_dict())))
    assert (list(again), again.bad) == (expected[2:], 1)
    ended = hub_stream(ConnectionError("lost"), "skip")
    ended.end()
    with pytest.raises(DataError, match="can't reach a/b: ConnectionError: lost") as told:
        list(ended)
    assert told.value.exit_status == 1


def test_what_is_wrong_with_a_row_or_a_file_of_the_hub_is_told() -> None:
    with pytest.raises(DataError, match=r"a/b row 2: it has no text in data.text_field='text'"):
        list(hub_stream(ConnectionError("lost"), "error"))
    with pytest.raises(DataError, match=r"can't read a/b from row 4 on: ArrowInvalid: damaged") as told:
        list(hub_stream(pa.ArrowInvalid("damaged"), "skip"))
    assert told.value.exit_status == 2


def test_rows_of_the_hub_are_numbered_with_the_blank_ones() -> None:
    Rows.failures = 2
    told: set[str] = set()

    def stream(state: dict[str, Any] | None) -> HubStream:
        make = lambda: Rows(OSError(), first=" ")  # noqa: E731
        return HubStream(make, field="text", columns=["text"], name="a/b", rules=ReadRules(), told=told, state=state)

    failed = stream(None)
    for again in (failed, stream(failed.state_dict())):
        with pytest.raises(DataError, match=r"a/b row 2: it has no text"):
            next(again)
    skipping = hub_stream(OSError(), "skip")
    assert next(skipping) == "text 1"
    earlier = {key: value for key, value in skipping.state_dict().items() if key != "row"}
    with pytest.raises(DataError, match=r"a/b row 2: it has no text"):
        next(stream(earlier))


def test_a_long_document_of_the_hub_is_a_bad_one() -> None:
    def read(on_bad: str) -> list[str]:
        Rows.failures = 2
        rules = ReadRules(on_bad=on_bad, max_document_bytes=5)
        told: set[str] = set()
        make = lambda: Rows(OSError())  # noqa: E731
        return list(HubStream(make, field="text", columns=["text"], name="a/b", rules=rules, told=told, state=None))

    assert read("skip") == []
    with pytest.raises(DataError, match="a/b row 1: it is longer than data.max_document_bytes=5"):
        read("error")


@pytest.mark.parametrize("change", ["content", "length"])
def test_a_file_that_changes_while_a_run_reads_the_others_is_named(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("words")
    spec = SourceSpec("text", files=(str(tmp_path / "*.txt"),))
    source, allowing = open_source(spec), open_source(replace(spec, allow_changed_source=True))
    (tmp_path / "b.txt").write_text("words")  # the same again
    assert list(source.documents()) == ["words", "words"]
    (tmp_path / "b.txt").write_text("other" if change == "content" else "more words")
    with pytest.raises(DataError, match=r"b\.txt .* has been changed since this run was started"):
        list(source.documents())
    for _ in range(2):
        assert list(allowing.documents())[1] in ("other", "more words")
    assert caplog.text.count("reading it as it is now") == 1


@pytest.mark.parametrize(
    ("answer", "offset"),
    [
        (b"this is no http\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", 50),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort", 0),
    ],
)
def test_an_answer_that_breaks_off_is_a_lost_connection(answer: bytes, offset: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve_once() -> None:
            connection, _ = listening.accept()
            connection.recv(10_000)
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=serve_once)
        thread.start()
        with RemoteFile(f"http://127.0.0.1:{listening.getsockname()[1]}/a") as file:
            file.seek(offset)
            with pytest.raises(ConnectionError):
                file.readall()
        thread.join()


@pytest.mark.parametrize("check", [None, check_text_head])
def test_a_file_that_can_not_be_read_is_told_before_anything_is_built(
    tmp_path: Path, check: Callable[[str, bytes], None] | None
) -> None:
    with pytest.raises(DataError, match=r"gone\.txt can't be read: .*No such file"):
        readable_files([str(tmp_path / "gone.txt")], check)
