"""Which files a source reads: links to nothing, links to one another, and what stands in place of a file's content."""

import gzip
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smet_train.data.files import expand
from smet_train.data.rules import ReadRules
from smet_train.data.sources import SourceSpec, open_source
from smet_train.errors import DataError
from smet_train.tracking.jsonl import read_events
from tests import forked
from tests.data.serving import serve

POINTERS = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git-annex": b"/annex/objects/SHA256E-s12345--4d7a.txt\n",
    "Xet": b"# xet version 0\nfilesize = 12345\n",
}
PAGES = [
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
    b"\xef\xbb\xbf\n <HTML>\n<body>502 Bad Gateway</body></HTML>",
    b"<!-- of a proxy -->\n<html lang='en'>",
]


def texts(spec: SourceSpec) -> list[str]:
    return list(open_source(spec).documents())


def test_links_to_what_is_not_there_are_named(tmp_path: Path) -> None:
    for name in ("a", "e"):
        (tmp_path / f"{name}.txt").write_text("text\n")
    for name in ("b", "c", "d", "f"):
        (tmp_path / f"{name}.txt").symlink_to(tmp_path / "annex" / name)
    with pytest.raises(
        DataError, match="4 of 6 files are links to what is not there: .*/b.txt, .*/c.txt, .*/d.txt and 1"
    ):
        expand([f"{tmp_path}/*.txt"])
    with pytest.raises(DataError, match="1 of 1 files are links to what is not there: .*/b.txt; fetch"):
        expand([f"{tmp_path}/b.txt"])
    with pytest.raises(DataError, match="are links to what is not there"):
        expand([f"{tmp_path}/**"])


def test_a_file_of_several_names_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "again.txt").symlink_to(tmp_path / "b.txt")
    os.link(tmp_path / "a.txt", tmp_path / "hard.txt")
    (tmp_path / "folder").symlink_to(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = expand([f"{tmp_path}/*.txt", f"{tmp_path}/folder/b.txt"])
    assert found == [f"{tmp_path}/a.txt", f"{tmp_path}/again.txt"]
    assert "left out 3 files of 5 that are links to others of them" in caplog.text
    assert texts(SourceSpec("text", files=(f"{tmp_path}/*.txt",), text_unit="line")) == ["one", "two"]


@pytest.mark.parametrize("what", POINTERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_a_pointer_is_no_text(tmp_path: Path, name: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    kind = {"txt": "text", "jsonl": "jsonl", "parquet": "parquet"}[name.split(".")[1]]
    (tmp_path / name).write_bytes(POINTERS[what])
    spec = SourceSpec(kind, files=(f"{tmp_path}/{name}",), text_unit="line")
    with pytest.raises(DataError, match=f"it is a {what} pointer, not the file"):
        texts(spec)
    good = tmp_path / f"b{name[1:]}"
    write(good, ["one", "two"])
    skipping = SourceSpec(
        kind, files=(f"{tmp_path}/*",), text_unit="line", rules=ReadRules(on_bad="skip", max_bad_fraction=0.5)
    )
    assert texts(skipping) == ["one", "two"]
    assert f"it is a {what} pointer" in caplog.text


def write(path: Path, lines: list[str]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": lines}), path)
        return
    content = "".join(f"{json.dumps({'text': line}) if '.jsonl' in path.name else line}\n" for line in lines).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = bytes(pa.compress(content, "zstd"))
    path.write_bytes(content)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("kind", "name"), [("text", "a.txt"), ("jsonl", "a.jsonl"), ("text", "a.txt.gz")])
def test_a_page_is_not_what_a_url_of_text_should_give(tmp_path: Path, kind: str, name: str, page: bytes) -> None:
    (tmp_path / name).write_bytes(page)
    with serve(tmp_path) as server, pytest.raises(DataError, match="it is an HTML page, of an error, a login"):
        texts(SourceSpec(kind, files=(f"{server.url}/{name}",), text_unit="line"))


def test_pages_that_are_asked_for_are_read(tmp_path: Path) -> None:
    for name in ("a.html", "b.txt"):
        (tmp_path / name).write_bytes(PAGES[0])
    with serve(tmp_path) as server:
        assert "Sign in" in texts(SourceSpec("text", files=(f"{server.url}/a.html",), text_unit="document"))[0]
    assert "Sign in" in texts(SourceSpec("text", files=(f"{tmp_path}/b.txt",), text_unit="document"))[0]


@pytest.mark.parametrize("typed", ["glob", "literal"])
def test_a_name_that_is_not_utf8_trains_and_goes_on(
    tmp_path: Path, quick: list[str], documents: Callable[..., list[str]], typed: str
) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(b"caf\xe9.txt")
    path.write_text("\n".join(documents(400)))
    run = str(tmp_path / "run")

    def call(*words: str) -> int:
        done = forked.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True)
        assert b"Traceback" not in done.stderr
        return done.returncode

    files = f"data.files=['{folder}/*.txt']" if typed == "glob" else f"data.files=['{path}']"
    others = [word for word in quick if not word.startswith("data.files=")]
    assert call("smet_train", *others, files, f"hydra.run.dir={run}") == 0
    assert call("smet_train", "resume", run, "train.steps=8") == 0
    events = read_events(tmp_path / "run" / "metrics.jsonl")
    assert [event["step"] for event in events if event["event"] == "train"] == list(range(1, 9))
    assert call("smet_train.cli.eval", run) == 0
    assert call("smet_train.cli.export", run, "--format", "hf", "--out", str(tmp_path / "out")) == 0
    assert "\\udce9" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
