"""The processes that smet-train starts of itself: they end with it, and know that it passes signals on."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from subprocess import Popen
from typing import Any

# Ctrl-C, kill, a lost terminal, what SLURM (--signal=USR1@60) and Grid Engine (-notify: USR2) send before they kill,
# and the system when a process has used its CPU time (ulimit -t, h_cpu) but for the rest until its hard limit.
STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)

_MARK = "SMET_TRAIN_PASSES_SIGNALS_ON"
_PR_SET_PDEATHSIG = 1
# Opened here, because in a forked process another thread's lock may be held for ever.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def gets_signals_twice() -> bool:
    """Whether a signal to all processes reaches this one a second time, from the smet-train or torchrun behind it."""
    return _MARK in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def python_of_children() -> list[str]:
    """How a program of this environment is started: modules are never looked for in the working directory, where a
    user's own ``queue.py`` would take the place of Python's, and a stranger's would run."""
    return [sys.executable, "-P"]


def start_child(command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> "Popen[bytes]":
    """Start ``command`` as a process that ends with this one and is passed the signals that this one gets.

    It has a session of its own, so that Ctrl-C on the terminal reaches this process alone, which passes it on once.

    Args:
        environment: all of the variables it gets, but for the one that says where it comes from.
        streams: ``stdin``, ``stdout`` and ``stderr`` of :class:`subprocess.Popen`.
    """
    return Popen(
        command,
        env={**environment, _MARK: "1"},
        start_new_session=True,
        preexec_fn=_ending_with_this_process(),
        **streams,
    )


def _ending_with_this_process() -> Callable[[], None]:
    """For ``preexec_fn`` of subprocess: on Linux the child is sent SIGTERM when the thread that starts it ends, and so
    when this process dies, however it does."""
    starter = os.getpid()

    def arrange() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != starter:  # it has died already
                os.kill(os.getpid(), signal.SIGTERM)

    return arrange
