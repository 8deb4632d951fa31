"""Files are known again by their contents: every change is found, and named as far as it has a name."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smet_train.data import hashes
from smet_train.data.hashes import content_hashes
from smet_train.data.manifest import FileIdentity, Manifest, find_change, seen_from_where, take_manifest
from smet_train.data.python_source import find_python_files
from smet_train.data.remote import remote_identity
from smet_train.data.sources import SourceSpec, open_source
from smet_train.errors import DataError
from tests.data.serving import serve


def manifest(**files: tuple[int, str]) -> Manifest:
    return Manifest(tuple(FileIdentity(name, size, digest) for name, (size, digest) in files.items()))


BEFORE = manifest(a=(1, "aaaaaaaa"), b=(2, "bbbbbbbb"), c=(3, "cccccccc"))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (manifest(a=(1, "aaaaaaaa"), b=(2, "bbbbbbbb"), c=(3, "cccccccc")), None),
        (manifest(a=(1, "aaaaaaaa"), c=(3, "cccccccc")), "b is missing"),
        (manifest(a=(1, "aaaaaaaa"), b=(2, "bbbbbbbb"), c=(3, "cccccccc"), d=(1, "dddddddd")), "d is new"),
        (manifest(a=(1, "aaaaaaaa"), b2=(2, "bbbbbbbb"), c=(3, "cccccccc")), "b is now called b2"),
        (manifest(a=(1, "aaaaaaaa"), b=(9, "bbbbbbbb"), c=(3, "cccccccc")), "b had 2 bytes, now it has 9"),
        (manifest(a=(1, "aaaaaaaa"), b=(2, "xbbbbbbb"), c=(3, "cccccccc")), "b has other content of the same size"),
        (manifest(b=(2, "bbbbbbbb"), a=(1, "aaaaaaaa"), c=(3, "cccccccc")), "b stands elsewhere in the order"),
        (manifest(a=(1, "aaaaaaaa"), b=(2, "bbbbbbbb"), c=(3, "ccccccc?")), "a or another one has changed"),
        (manifest(a=(2, "aaaaaaaa")), "a had 1 bytes, now it has 2 (and 2 more)"),
    ],
)
def test_a_change_is_named(now: Manifest, told: str | None) -> None:
    def retake(_: bool) -> Manifest:
        raise AssertionError("both were taken alike")

    assert find_change(json.loads(json.dumps(BEFORE.packed)), now, retake) == told


@pytest.mark.parametrize(
    ("known", "names", "found"),
    [
        (["p", "q"], ["2023/p", "2023/q", "2024/p"], ["p", "q", "../2024/p"]),
        (["2023/p", "2024/p"], ["p"], ["2023/p"]),  # or 2024/p: the first of equals
        (["2023/p", "2023/q", "2024/p"], ["p", "q"], ["2023/p", "2023/q"]),
        (["p", "../2024/r"], ["2023/p", "2024/r", "2024/s"], ["p", "../2024/r", "../2024/s"]),
        (["p", "q"], ["a/b/p", "a/b/q", "c/p"], ["p", "q", "../../c/p"]),
        (["p", "q"], ["p", "r"], ["p", "r"]),
        (["p"], ["q/r"], ["q/r"]),
        (["p", "http://h/p"], ["2023/p", "2024/q", "http://h/p"], ["p", "../2024/q", "http://h/p"]),
        ([], ["p"], ["p"]),
    ],
)
def test_names_are_seen_from_where_they_were(known: list[str], names: list[str], found: list[str]) -> None:
    assert seen_from_where(known, names) == found
    assert seen_from_where(found, names) == found  # as when the run goes on again


def test_names_of_very_many_files_are_seen_from_where_they_were() -> None:
    known = [f"part{number % 7}/{number}.txt" for number in range(20_000)]
    names = [f"corpus/2023/{name}" for name in known] + ["corpus/2024/x.txt"]
    assert seen_from_where(known, names) == [*known, "../2024/x.txt"]


def test_thousands_of_shards_are_a_state_of_some_kilobytes() -> None:
    files = {
        f"train/en/c4-train.{n:05}-of-05000.json.gz": (300_000_000 + 7919 * n, f"{n * 2654435761:016x}")
        for n in range(5000)
    }
    assert len(json.dumps(manifest(**files).packed)) < 100_000


def test_a_source_that_has_grown_over_the_limit_is_compared_as_it_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name in "ab":
        (tmp_path / name).write_bytes(os.urandom(100_000))
        paths.append(str(tmp_path / name))
    whole = take_manifest(paths, None, 0)
    monkeypatch.setattr("smet_train.data.manifest.SAMPLED_FROM_BYTES", 150_000)
    sampled = take_manifest(paths, None, 0)
    assert (whole.sampled, sampled.sampled) == (False, True)
    assert find_change(whole.packed, sampled, lambda kind: take_manifest(paths, None, 0, kind)) is None
    (tmp_path / "b").write_bytes(b"other")
    now = take_manifest(paths, None, 0, True)
    changed = find_change(whole.packed, now, lambda kind: take_manifest(paths, None, 0, kind))
    assert changed == "b had 100000 bytes, now it has 5"


def test_hashes_are_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(path: str, real: Callable[[str], str] = hashes._whole) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "_whole", counting)
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        Path(path).write_text("content of " + path)

    def take() -> tuple[list[str], int]:
        read.clear()
        return content_hashes(paths, sampled=False, cache_dir=tmp_path / "cache"), len(read)

    first, n_read = take()
    assert (n_read, take()) == (2, (first, 2))  # written a moment ago: not yet known by their times
    monkeypatch.setattr(hashes, "_SETTLED_NS", 0)
    take()
    assert take() == (first, 0)
    times = os.stat(paths[0])
    Path(paths[0]).write_text(Path(paths[0]).read_text().upper())
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    second, n_read = take()
    assert (second[0] != first[0], second[1] == first[1], n_read) == (True, True, 1)
    (store,) = (tmp_path / "cache" / "hashes").iterdir()
    for damaged in ("{", "[]"):
        store.write_text(damaged)
        assert take() == (second, 2)


@pytest.mark.parametrize("ahead_s", [-3600, 3600, 10**9])
def test_a_file_of_another_clock_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int) -> None:
    """Of a server's whose clock is ahead, or of a machine that had the wrong date."""
    path, read = tmp_path / "a", []
    path.write_text("content")

    def counting(name: str, real: Callable[[str], str] = hashes._whole) -> str:
        read.append(name)
        return real(name)

    now = time.time_ns()
    monkeypatch.setattr(hashes, "_whole", counting)
    monkeypatch.setattr("time.time_ns", lambda: now - ahead_s * 10**9)
    for _ in range(3):
        content_hashes([str(path)], sampled=False, cache_dir=tmp_path / "cache")
    assert len(read) == 1


def test_a_file_of_this_moment_is_hashed_again_whatever_date_its_content_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "a", []
    path.write_text("content")
    os.utime(path, (2 * 10**9, 2 * 10**9))

    def counting(name: str) -> str:
        read.append(name)
        return "0"

    monkeypatch.setattr(hashes, "_whole", counting)
    for _ in range(2):
        content_hashes([str(path)], sampled=False, cache_dir=tmp_path / "cache")
    assert len(read) == 2


def test_large_files_are_known_by_blocks(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(40_000_000))

    def hashed() -> list[str]:
        return content_hashes([str(path)], sampled=True, cache_dir=None)

    before = hashed()
    for place in (0, 20_000_000, 39_999_999):
        with path.open("r+b") as file:
            file.seek(place // 39_682_539 * 39_682_539 if place else 0)
            file.seek(place)
            file.write(b"x" * (700_000 if 0 < place < 30_000_000 else 1))
        assert hashed() != before
        before = hashed()


def test_reading_much_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "a").write_text("words")
    monkeypatch.setattr(hashes, "_TOLD_FROM_BYTES", 5)
    content_hashes([str(tmp_path / "a")], sampled=False, cache_dir=None)
    assert "reading 1 files" in caplog.text


def test_a_url_is_known_by_what_its_server_tells(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with serve(tmp_path) as server:
        before = open_source(SourceSpec("jsonl", files=(f"{server.url}/a.jsonl",)))
        (tmp_path / "a.jsonl").write_text('{"text": "two"}\n')
        after = open_source(SourceSpec("jsonl", files=(f"{server.url}/a.jsonl",)))
        assert after.change_since(before.files) == f"{server.url}/a.jsonl has other content of the same size"
        server.head_status = 405
        assert remote_identity(f"{server.url}/a.jsonl") == (None, "")
        assert take_manifest([f"{server.url}/a.jsonl"], None, 0).files[0].size == -1


def test_files_that_are_gone_while_they_are_hashed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("words")

    def gone(*_: Any, **__: Any) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", "a.txt")

    monkeypatch.setattr("smet_train.data.manifest.content_hashes", gone)
    with pytest.raises(DataError, match=r"No such file or directory: 'a.txt'") as told:
        open_source(SourceSpec("text", files=(str(tmp_path / "a.txt"),)))
    assert told.value.exit_status == 1


def test_a_changed_file_of_the_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("# some source\n" * 20)
    monkeypatch.setattr("smet_train.data.sources.find_python_files", lambda: find_python_files(tmp_path))
    before = open_source(SourceSpec("python_source")).files
    (tmp_path / "b.py").write_text("# other source\n" * 20)
    change = open_source(SourceSpec("python_source")).change_since(before)
    assert change == "b.py had 280 bytes, now it has 300"
