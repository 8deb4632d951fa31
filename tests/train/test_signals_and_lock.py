import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smet_train.errors import CheckpointError
from smet_train.train.lock import run_folder_lock
from smet_train.train.signals import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_noted_in_the_loop(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.interruptible = False
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing this step, then saving" in capsys.readouterr().err


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_during_start_up_it_ends_the_process(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as caught, StopRequest():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number


def test_a_second_signal_ends_at_once() -> None:
    code = """
import os, signal
from smet_train.train.signals import StopRequest
with StopRequest() as stop:
    stop.interruptible = False
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == ""


def test_a_folder_has_one_holder_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    code = """
import sys, time, pathlib
from smet_train.train.lock import run_folder_lock
with run_folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"another process \(pid {holder.pid}\) is training in"), \
                run_folder_lock(tmp_path):  # fmt: skip
            pass
        holder.kill()
        holder.wait()
    with run_folder_lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}"
