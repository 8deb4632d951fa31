"""A process outlives what it writes to."""

import errno
import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO

import pytest
from rich.progress import Progress

from smet_train.tracking.console import ConsoleSink, open_console
from smet_train.tracking.streams import LastingStream, lasting, let_output_encode_anything
from tests.programs import BOTH


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal() -> int:
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


GONE = {pipe_without_reader: errno.EPIPE, closed_terminal: errno.EIO, full_disk: errno.ENOSPC}


@pytest.fixture(params=GONE)
def gone(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """A stream, and why it can't be written."""
    stream = os.fdopen(request.param(), "w")
    with pytest.raises(OSError, match=os.strerror(GONE[request.param])):
        os.write(stream.fileno(), b"text")
    yield stream
    with suppress(OSError):
        stream.close()


def test_text_for_nobody_is_dropped_and_told_once(gone: TextIO, caplog: pytest.LogCaptureFixture) -> None:
    stream = lasting(gone)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert stream.write("a line\n") == 7
            stream.writelines(["one\n", "two\n"])
            stream.flush()
    (told,) = caplog.messages
    assert "can't be written any more (" in told
    gone.flush()  # as Python does at its end
    assert os.path.samestat(os.fstat(gone.fileno()), os.stat(os.devnull))


def test_a_long_text_fails_within_its_write(gone: TextIO) -> None:
    stream = lasting(gone)
    assert stream.write("x" * 100_000) == 100_000
    assert stream.write("x" * 100_000) == 100_000


def test_a_stream_that_is_there_is_written(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        stream = lasting(file)
        assert lasting(stream) is stream
        assert stream.write("a\n") == 2
        stream.writelines(["b\n", "c\n"])
        stream.flush()
        assert (tmp_path / "log").read_text() == "a\nb\nc\n"
        assert stream.name == file.name
        assert stream.fileno() == file.fileno()


def test_one_without_a_descriptor_is_left_too() -> None:
    class Lost(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.EIO, "lost")

    stream = LastingStream(Lost())
    assert stream.write("text") == 4
    assert stream.write("more") == 4


def test_a_display_shows_no_more_and_raises_nothing(gone: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", gone)
    console = open_console()
    sink = ConsoleSink(console, total_steps=3, start_step=0, log_interval=1)
    for step in (1, 2, 3):
        sink.emit(
            {"event": "train", "step": step, "tokens": 8, "tokens_per_s": 1.0, "loss": 1, "lr": 1, "grad_norm": 1}
        )
    sink.close()
    console.print("the end")
    assert os.path.samestat(os.fstat(gone.fileno()), os.stat(os.devnull))


def test_a_bar_on_a_terminal_that_closes_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    master, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with Progress(console=open_console(), refresh_per_second=100) as bar:
            task = bar.add_task("train", total=10)
            bar.refresh()
            os.close(master)
            for _ in range(10):
                bar.update(task, advance=1, refresh=True)
        assert bar.finished


@BOTH
@pytest.mark.parametrize("lost", GONE)
def test_a_process_ends_with_its_own_status(programs: ModuleType, lost: Callable[[], int]) -> None:
    """Python would exit with 120 because of what it can't write at its end."""
    code = (
        "import sys; from smet_train.tracking.streams import let_output_end_first; let_output_end_first();"
        "print('out'); print('err', file=sys.stderr); sys.exit(3)"
    )
    descriptor = lost()
    ended = programs.run([sys.executable, "-c", code], stdout=descriptor, stderr=descriptor, check=False)
    os.close(descriptor)
    assert ended.returncode == 3


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", rb"caf\xe9 \u2026 \udce9"),
        ("latin-1", b"caf\xe9 \\u2026 \\udce9"),
        ("utf-8", b"caf\xc3\xa9 \xe2\x80\xa6 \\udce9"),
    ],
)
def test_what_an_encoding_has_no_sign_for_is_an_escape(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding))
    let_output_encode_anything()
    print("caf\xe9 \u2026 \udce9", end="", flush=True)
    assert content.getvalue() == written


@pytest.mark.process
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_run_ends_well_on_a_terminal_that_knows_few_letters(tmp_path: Path, quick: list[str], encoding: str) -> None:
    command = [sys.executable, "-m", "smet_train", *quick, f"hydra.run.dir={tmp_path}"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u2026" in done.stdout
    assert b"Traceback" not in done.stderr
