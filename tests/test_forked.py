"""A forked Python program is what a new interpreter would make of the same words."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import forked

PROGRAMS = {
    "words and streams": (
        "import sys; print(sys.argv[1:]); print('told', file=sys.stderr); print(sys.stdin.read())", b"given"
    ),
    "a status": ("raise SystemExit(7)", b""),
    "a message": ("raise SystemExit('wrong')", b""),
    "no status": ("raise SystemExit", b""),
    "a large status": ("raise SystemExit(257)", b""),
    "a signal": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", b""),
    "interrupted": ("import signal; signal.raise_signal(signal.SIGINT)", b""),
    "at exit": ("import atexit; atexit.register(print, 'bye'); print('hello')", b""),
    "a thread": ("import threading as t, time; t.Thread(target=lambda: (time.sleep(0.1), print('done'))).start()", b""),
    "its surroundings": ("import os; print(os.getcwd(), sorted(os.environ)); import sys; print(sys.path[0])", b""),
    "its streams": ("import sys; print(sys.stdout.name, sys.stderr.name)", b""),
    "its main module": ("import __main__; x = 1; print(__main__.x, __name__)", b""),
    "signals": (
        "import signal; print([signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGHUP)],"
        "signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN)", b""
    ),
}  # fmt: skip


def outcome(done: "subprocess.CompletedProcess[Any]") -> tuple[int, Any, Any]:
    return done.returncode, done.stdout, done.stderr


@pytest.mark.process
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_as_in_a_new_interpreter(name: str, tmp_path: Path) -> None:
    code, given = PROGRAMS[name]
    command = [sys.executable, "-c", code, "one", "two words"]
    more: dict[str, Any] = {
        "cwd": tmp_path, "env": {"PATH": os.environ["PATH"], "OWN": "1", "LC_CTYPE": "C.UTF-8"}, "input": given
    }  # fmt: skip
    assert outcome(forked.run(command, capture_output=True, **more)) == outcome(
        subprocess.run(command, capture_output=True, check=False, **more)
    )


@pytest.mark.process
@pytest.mark.parametrize("words", [["-m", "smet_train", "--version"], ["-m", "smet_train.cli.eval", "nowhere"]])
def test_a_module_ends_as_in_a_new_interpreter(words: Sequence[str], tmp_path: Path) -> None:
    command = [sys.executable, *words]
    more: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    assert outcome(forked.run(command, **more)) == outcome(subprocess.run(command, check=False, **more))


def test_a_file_finds_its_neighbours_and_an_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 3\n")
    (tmp_path / "program.py").write_text(
        "import neighbour, sys\nprint(neighbour.VALUE, sys.argv)\nraise OSError('no')\n"
    )
    done = forked.run([sys.executable, str(tmp_path / "program.py"), "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, f"3 ['{tmp_path / 'program.py'}', 'x']\n")
    assert done.stderr.endswith("OSError: no\n")


def test_it_can_be_looked_at_signalled_and_read_while_it_runs() -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with forked.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_one_that_hangs_is_ended_and_says_where() -> None:
    code = "import faulthandler, time; faulthandler.enable(2)\ndef hangs(): time.sleep(60)\nhangs()"
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", code], timeout=0.5)


def test_what_it_starts_is_a_fork_of_it_that_ends_with_it() -> None:
    code = (
        "import os, sys, time; from smet_train.offspring import start_child\n"
        "code = 'import os, sys, time; print(os.getppid(), sys.argv, flush=True); time.sleep(60)'\n"
        "start_child([sys.executable, '-c', code, 'word'], dict(os.environ))\n"
        "time.sleep(60)"
    )
    with forked.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid} ['-c', 'word']\n"
        process.kill()
        started_s = time.monotonic()
        assert process.stdout.read() == ""  # when the child has closed it too
        assert time.monotonic() - started_s < 30


@pytest.mark.parametrize(("command", "more"), [(["true"], {}), ([sys.executable], {"preexec_fn": print})])
def test_what_it_can_not_start_is_refused(command: list[str], more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not|no child of this one"):
        forked.run(command, **more)
