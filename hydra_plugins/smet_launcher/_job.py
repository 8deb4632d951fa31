"""One job of a sweep: a process in a folder of its own, started anew if it fails and that is asked for."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smet_train import opening
from smet_train.offspring import start_child

_MISTAKE = 2  # the exit status of a command that can't be run as it is


@dataclass
class Job:
    """What is to be run, and what came of it: ``status`` is "done", "failed", or "stopped" for one that is unfinished
    because it was asked to end, or was not begun."""

    number: int  # from 1
    name: str
    overrides: list[str]
    folder: Path
    command: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)  # words that a further attempt has behind the command
    status: str = "stopped"
    error: str | None = None
    wall_s: float = 0.0


def _silent(_text: str) -> None:
    """Nobody listens."""


class JobProcess:
    """Runs a job to its end, its output added to ``console.log`` in its folder.

    Args:
        retries: how often a job that failed is started anew; a user's mistake is not.
        environment: variables beside those of this process, which win.
        goes_on: whether the job was begun by another process of the same sweep before.
        tell: called with a line about each new attempt.
    """

    def __init__(
        self,
        job: Job,
        retries: int = 0,
        environment: Mapping[str, str] | None = None,
        *,
        goes_on: bool = False,
        tell: Callable[[str], None] = _silent,
    ) -> None:
        self._job = job
        self._retries = retries
        self._environment = environment or {}
        self._goes_on = goes_on
        self._tell = tell
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()  # so that a signal finds every child that was started
        self._stopped = False

    def run(self) -> None:
        """Fill in the job's status, error and wall_s. Not in the thread that handles signals: see :meth:`stop`."""
        started_s = time.monotonic()
        self._job.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(self._retries + 1):
            try:
                status = self._attempt(self._job.again if attempt > 0 or self._goes_on else [])
            except OSError as error:
                self._job.status = "failed"
                self._job.error = f"{error.filename or self._job.folder} can't be written ({error.strerror})"
                break
            if status in (0, None, _MISTAKE) or attempt == self._retries or self._stopped:
                break
            self._tell(f"failed: {self._job.error}; trying again")
        self._job.wall_s = time.monotonic() - started_s

    def stop(self, number: int) -> None:
        """Pass a signal to the process, which saves and ends; no further one is started."""
        with self._starting:
            self._stopped = True
            if self._child is not None:
                self._child.send_signal(number)

    def _attempt(self, more: list[str]) -> int | None:
        """Run the process to its end; returns its exit status, None if the job was stopped before."""
        log = self._job.folder / "console.log"
        with opening.append_to(log) as output:
            before_bytes = output.tell()
            with self._starting:
                if self._stopped:
                    return None
                self._child = start_child(
                    [*self._job.command, *more],
                    {**self._environment, **os.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            status = self._child.wait()
        if not self._stopped:
            self._job.status = "done" if status == 0 else "failed"
            self._job.error = None if status == 0 else _error_text(log, before_bytes, status)
        return status


def _error_text(log: Path, before_bytes: int, status: int) -> str:
    """The last line that a failed job printed, behind what earlier attempts have; of a killed one also how."""
    with opening.regular(log) as file:
        file.seek(before_bytes)
        printed = file.read().decode("utf-8", errors="replace")
    lines = [line for line in printed.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no output"
    killed = f"killed by {signal.Signals(-status).name}; " if status < 0 else ""
    return f"{killed}{last} (see {log})"
