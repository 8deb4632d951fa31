"""Processes that smet-train starts end with it, and know that a signal may come twice."""

import signal
import subprocess
import sys

import pytest

from smet_train.offspring import MARKED, gets_signals_twice


@pytest.mark.parametrize(
    ("environment", "twice"), [({}, False), (MARKED, True), ({"TORCHELASTIC_RUN_ID": "none"}, True)], ids=range(3)
)
def test_who_was_started_by_one_that_passes_signals_on_may_get_them_twice(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], twice: bool
) -> None:
    for name in (*MARKED, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert gets_signals_twice() == twice


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_process_whose_starter_died_before_it_could_ask_ends_at_once() -> None:
    code = """
import os
from smet_train.offspring import ending_with_this_process
arrange = ending_with_this_process()
if os.fork() == 0:  # its child's parent is another process than the starter
    child = os.fork()
    if child == 0:
        arrange()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == -signal.SIGTERM
