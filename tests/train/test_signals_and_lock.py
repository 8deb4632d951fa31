import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smet_train.errors import CheckpointError
from smet_train.offspring import STOP_SIGNALS
from smet_train.train.lock import run_folder_lock
from smet_train.train.signals import StopRequest
from tests import forked


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_noted_in_the_loop(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.arm()
        stop.arm()
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing this step, then saving" in capfd.readouterr().err


def killed(code: str) -> int:
    done = forked.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_during_start_up_it_ends_the_process(number: signal.Signals) -> None:
    code = f"""
import os, signal
from smet_train.train.signals import StopRequest
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the command line does
with StopRequest():
    os.kill(os.getpid(), {int(number)})
    print("still here")
"""
    assert killed(code) == -number


@pytest.mark.parametrize("code", range(1, len(STOP_SIGNALS) + 2))
def test_after_the_budget_or_a_stop_of_another_process_the_first_signal_is_the_first(code: int) -> None:
    """As SLURM's, sent a minute before a limit that train.max_hours is a little below of."""
    ends = f"""
import os, signal
from smet_train.train.signals import StopRequest
with StopRequest(budget_s=0) as stop:
    stop.arm()
    stop.take({code})
    told = stop.reason
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (stop.reason, stop.code) == (told, {code})
"""
    assert killed(ends) == 0


def test_the_end_of_the_cpu_time_that_is_sent_each_second_is_one_signal() -> None:
    """A soft limit of one second, as of ``ulimit -St 1``; after it the process must be able to save."""
    code = """
import resource, signal, time
from smet_train.train.signals import StopRequest
with StopRequest() as stop:
    stop.arm()
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1, resource.RLIM_INFINITY))
    while stop.reason is None:
        pass
    assert stop.reason == "SIGXCPU"
    signal.raise_signal(signal.SIGXCPU)
    signal.raise_signal(signal.SIGTERM)
    print("still here")
"""
    assert killed(code) == 128 + signal.SIGTERM


def test_a_second_signal_ends_at_once() -> None:
    code = """
import os, signal
from smet_train.train.signals import StopRequest
with StopRequest() as stop:
    stop.arm()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    assert killed(code) == 128 + signal.SIGINT


@pytest.mark.parametrize("ended", [False, True], ids=["in the loop", "as the process ends"])
@pytest.mark.parametrize(
    ("again", "later_s", "status"),
    [("SIGTERM", 1.9, 0), ("SIGTERM", 2.1, 128 + signal.SIGTERM), ("SIGINT", 0.1, 128 + signal.SIGINT)],
)
def test_an_echo_of_the_first_signal_is_the_same_one(again: str, later_s: float, status: int, ended: bool) -> None:
    """A scheduler's signal to all processes of a run reaches each a second time, from what has started them."""
    if ended and again == "SIGINT":
        status = -signal.SIGINT  # as if there had been no first one
    code = f"""
import os, signal
from contextlib import ExitStack
from smet_train.train.signals import StopRequest
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the command line does
now_s = 100.0
with ExitStack() as held:
    stop = held.enter_context(StopRequest(echo_s=2.0, clock=lambda: now_s))
    stop.arm()
    os.kill(os.getpid(), signal.SIGTERM)
    if {ended}:
        held.close()
    now_s += {later_s}
    os.kill(os.getpid(), signal.{again})
    assert stop.reason == "SIGTERM"
"""
    assert killed(code) == status


def test_what_is_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            stop.arm()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_budget_is_a_reason_from_its_end_on_and_a_signal_goes_before_it() -> None:
    now_s = 100.0
    with StopRequest(60.0, clock=lambda: now_s) as stop:
        stop.arm()
        assert stop.reason is None
        now_s = 160.0
        assert stop.reason == "train.max_hours"
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"


def test_a_folder_has_one_holder_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    code = """
import sys, time, pathlib
from smet_train.train.lock import run_folder_lock
with run_folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    with forked.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"another process \(pid {holder.pid}\) is training in"), \
                run_folder_lock(tmp_path):  # fmt: skip
            pass
        holder.kill()
        holder.wait()
    with run_folder_lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}"


def failing(monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int) -> None:
    """Let ``module.name`` fail with the error ``number``."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize(
    ("call", "number", "status"),
    [("open", errno.EROFS, 2), ("open", errno.EACCES, 2), ("write", errno.ENOSPC, 1), ("ftruncate", errno.EIO, 1)],
)
def test_a_lock_that_can_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, status: int
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, os, call, number)
        with pytest.raises(CheckpointError, match=rf".lock can't be written \({os.strerror(number)}\)") as told, \
                run_folder_lock(tmp_path):  # fmt: skip
            pass
    assert told.value.exit_status == status
    with run_folder_lock(tmp_path):  # nothing is held
        pass


def test_a_folder_under_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r".lock can't be written \(Not a directory\)"), \
            run_folder_lock(tmp_path / "file" / "run"):  # fmt: skip
        pass


def test_without_locks_a_run_goes_on_after_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(monkeypatch, fcntl, "flock", errno.ENOSYS)
    with run_folder_lock(tmp_path):
        pass
    assert "has no locks (Function not implemented): see to it that no second process" in caplog.text
    failing(monkeypatch, fcntl, "flock", errno.EIO)
    with pytest.raises(CheckpointError, match="Input/output error"), run_folder_lock(tmp_path):
        pass


def test_a_holder_on_another_host_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1 another-host")
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(CheckpointError, match=r"\(pid 1 on another-host\) is training in"),
            run_folder_lock(tmp_path),
        ):
            pass


def test_a_holder_that_does_not_say_who_it_is_is_waited_for_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smet_train.train.lock._PATIENCE_S", 0.05)
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=r"^another process is training in"), run_folder_lock(tmp_path):
            pass


def test_a_lock_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flock = fcntl.flock

    def remove_first(*arguments: Any) -> None:
        fcntl.flock = flock
        shutil.rmtree(folder)
        flock(*arguments)

    fcntl.flock = remove_first
    try:
        with run_folder_lock(folder):
            assert (folder / ".lock").read_text().startswith(str(os.getpid()))
    finally:
        fcntl.flock = flock
