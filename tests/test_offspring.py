"""Processes that smet-train starts end with it, and know that a signal may come twice."""

import signal
import subprocess
import sys

import pytest

from smet_train.offspring import gets_signals_twice, start_child


@pytest.mark.parametrize(("variable", "twice"), [(None, False), ("TORCHELASTIC_RUN_ID", True)])
def test_what_torchrun_has_started_may_get_signals_twice(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, twice: bool
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, "none")
    assert gets_signals_twice() == twice


@pytest.mark.process
def test_a_child_may_get_signals_twice_and_has_a_session_and_the_environment_that_it_is_given() -> None:
    code = "import os; from smet_train.offspring import gets_signals_twice as twice; "
    code += "print(twice(), os.getsid(0) == os.getpid(), os.environ['OWN'], 'HOME' in os.environ)"
    child = start_child([sys.executable, "-c", code], {"OWN": "7"}, stdout=subprocess.PIPE)
    assert child.communicate()[0] == b"True True 7 False\n"


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_process_whose_starter_died_before_it_could_ask_ends_at_once() -> None:
    code = """
import os
from smet_train.offspring import _ending_with_this_process
arrange = _ending_with_this_process()
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
