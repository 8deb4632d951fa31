"""``train.processes``: the processes of a run on one machine, started, watched and stopped together.

``torchrun`` does so too, over many machines. What is other here: all stop signals reach the processes, once, which may
take as long as they need to finish a step and save; and the exit status is theirs.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from smet_train.config.paths import folder_override
from smet_train.offspring import STOP_SIGNALS, python_of_children, start_child

_POLL_S = 0.05
_LAST_WORDS_S = 10.0  # for the others to notice that one has gone, before they are ended


def run_processes(n_processes: int, run_folder: Path, words: list[str]) -> int:
    """Run ``smet-train`` with the arguments ``words`` as ``n_processes`` processes of one run; returns the exit status:
    0, or that of the first that failed."""
    if words[0] != "resume":
        words = [*words, folder_override(run_folder)]  # a fresh folder is chosen once
    group = _Group()
    previous = {
        number: signal.signal(number, group.forward)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        group.start(n_processes, [*python_of_children(), "-m", "smet_train", *words])
        return group.wait()
    finally:
        group.end()
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Group:
    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []
        self._signal: int | None = None

    def start(self, n_processes: int, command: list[str]) -> None:
        shared = {
            **os.environ,
            "WORLD_SIZE": str(n_processes),
            "LOCAL_WORLD_SIZE": str(n_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        for rank in range(n_processes):
            child = start_child(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            self._children.append(child)
            if self._signal is not None:  # it came before this child was there
                child.send_signal(self._signal)

    def forward(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        for child in list(self._children):
            child.send_signal(number)

    def wait(self) -> int:
        """Wait for all; when one fails, for the others only so long."""
        failed, deadline_s = 0, None
        while any(child.poll() is None for child in self._children):
            statuses = [child.poll() for child in self._children]
            if deadline_s is None and any(statuses):
                failed = next(status for status in statuses if status)
                self._tell(statuses.index(failed), failed)
                deadline_s = time.monotonic() + _LAST_WORDS_S
            if deadline_s is not None and time.monotonic() > deadline_s:
                self.end()
            time.sleep(_POLL_S)
        failed = failed or next((child.returncode for child in self._children if child.returncode), 0)
        return 128 - failed if failed < 0 else failed

    def _tell(self, rank: int, status: int) -> None:
        """Say it of a process that could not say so itself."""
        if status < 0:
            died = f"process {rank} of {len(self._children)} was killed by {signal.Signals(-status).name}"
            print(f"smet-train: {died}", file=sys.stderr, flush=True)

    def end(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
