"""Each job of a sweep as a child process: no job can end, leak into or disturb another."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from smet_train.errors import ConfigError, SmetError

_LONGEST_NAME = 200  # file systems allow 255 bytes
_MISTAKE = 2  # the exit status of a command that can't be run as it is
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


@dataclass
class ChildProcessLauncherConfig:
    """``hydra.launcher.…``: ``jobs`` run at a time, each is started anew up to ``retries`` times if it fails."""

    _target_: str = "hydra_plugins.smet_launcher.child_process.ChildProcessLauncher"
    jobs: int = 1
    retries: int = 0


ConfigStore.instance().store(
    group="hydra/launcher", name="child_process", node=ChildProcessLauncherConfig, provider="smet_launcher"
)


def swept_overrides(overrides: Sequence[str], command: Sequence[str]) -> list[str]:
    """Those of a job's ``overrides`` that the sweep has chosen, all of them if the ``command`` sweeps over nothing."""
    same_in_all = {
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in OverridesParser.create().parse_overrides(list(command))
        if not override.is_sweep_override()
    }
    return [override for override in overrides if override not in same_in_all] or list(overrides)


def folder_name(overrides: Sequence[str]) -> str:
    """A job's overrides as the name of one folder; an overlong one is cut and told apart by a hash."""
    name = ",".join(overrides).replace("/", "_") or "defaults"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}-{sha256(name.encode()).hexdigest()[:8]}"


class ChildProcessLauncher(Launcher):
    """Runs jobs, each as ``python -m smet_train <overrides>`` in a folder named by what the sweep chose for it, or by
    hydra.sweep.subdir.

    The output of a job goes to ``console.log`` in its folder. Afterwards the table over all jobs is printed and
    written to ``sweep.csv`` in the sweep's folder. SIGINT and SIGTERM are passed to the running jobs, which save and
    end; the jobs after them are not started.

    Args:
        jobs: how many run at a time; they share the cores evenly, unless OMP_NUM_THREADS says otherwise.
        retries: how often a job that failed is started anew; it goes on from its newest checkpoint. A user's mistake
            is not tried again.
    """

    def __init__(self, jobs: int = 1, retries: int = 0) -> None:
        self._jobs = jobs
        self._retries = retries
        self._children: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()
        self._stopped_by: int | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Called by Hydra before :meth:`launch`; here a mistake in the settings is told as one.

        Raises:
            ConfigError: if fewer than one job are to run at a time, or one is to be tried again less than never.
        """
        if self._jobs < 1:
            raise ConfigError(f"hydra.launcher.jobs={self._jobs}: at least one job has to run at a time")
        if self._retries < 0:
            raise ConfigError(f"hydra.launcher.retries={self._retries} is out of range; write 0 or more")
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; a failed one is FAILED in what is returned and does not stop the others."""
        from smet_train.tracking.console import open_console  # imports rich: only a sweep's driver pays for it

        console = open_console()
        sweep_folder = Path(self._config.hydra.sweep.dir).absolute()
        sweep_folder.mkdir(parents=True, exist_ok=True)
        console.print(f"sweep of {len(job_overrides)} runs in {sweep_folder}", soft_wrap=True)
        previous = {number: signal.signal(number, self._forward) for number in _FORWARDED}
        jobs = [
            self._prepare(number, list(overrides), sweep_folder)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        try:
            with ThreadPoolExecutor(self._jobs) as pool:
                list(pool.map(partial(self._run_and_tell, console), jobs))
        finally:
            for signal_number, handler in previous.items():
                signal.signal(signal_number, handler)
        rows = self._report(console, jobs, sweep_folder)
        if self._stopped_by is not None:
            sys.exit(128 + self._stopped_by)
        return _job_returns(jobs, rows)

    def _prepare(self, number: int, overrides: list[str], sweep_folder: Path) -> dict[str, Any]:
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            config.hydra.job.num = number
        chosen = swept_overrides(overrides, self._config.hydra.overrides.task)
        name = str(config.hydra.sweep.subdir) or folder_name(chosen)
        return {
            "number": number + 1,
            "name": name,
            "overrides": overrides,
            "folder": sweep_folder / name,
            "status": "stopped",
            "error": None,
            "wall_s": 0.0,
        }

    def _run_and_tell(self, console: Any, job: dict[str, Any]) -> None:
        """The whole life of a job; in a thread of its own."""
        if self._stopped_by is not None:
            return
        console.print(f"[{job['number']}] {job['name']} ...", soft_wrap=True, markup=False)
        started_s = time.monotonic()
        job["folder"].mkdir(parents=True, exist_ok=True)
        for attempt in range(self._retries + 1):
            status = self._run_job(job, attempt)
            if status in (0, None, _MISTAKE) or attempt == self._retries or self._stopped_by is not None:
                break
            console.print(f"[{job['number']}] failed: {job['error']}; trying again", soft_wrap=True, markup=False)
        job["wall_s"] = time.monotonic() - started_s
        console.print(f"[{job['number']}] {job['status']} in {job['wall_s']:.0f} s", markup=False)

    def _run_job(self, job: dict[str, Any], attempt: int) -> int | None:
        """Run a job's process to its end; returns its exit status, None if the sweep was stopped before."""
        quoted = str(job["folder"]).replace("'", r"\'").replace("${", r"\${")
        command = [sys.executable, "-m", "smet_train", *job["overrides"], f"hydra.run.dir='{quoted}'"]
        log = job["folder"] / "console.log"
        with log.open("ab" if attempt else "wb") as output:
            with self._starting:  # a signal finds every child that was started
                if self._stopped_by is not None:
                    return None
                # A session of its own: Ctrl-C on the terminal reaches this driver alone, which passes it on once.
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=self._environment(),
                )
                self._children.add(child)
            status = child.wait()
            self._children.discard(child)
        if self._stopped_by is None:
            job["status"] = "done" if status == 0 else "failed"
            job["error"] = None if status == 0 else _error_text(log, status)
        return status

    def _environment(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self._jobs))} if self._jobs > 1 else {}
        return {**threads, **os.environ}

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stopped_by = number
        with self._starting:
            for child in tuple(self._children):
                child.send_signal(number)

    def _report(self, console: Any, jobs: list[dict[str, Any]], sweep_folder: Path) -> list[dict[str, Any]]:
        from smet_train.analysis.sweep import print_sweep_table, sweep_rows, write_sweep_csv

        rows = sweep_rows(jobs)
        write_sweep_csv(sweep_folder / "sweep.csv", rows)
        print_sweep_table(console, rows)
        console.print(f"table: {sweep_folder / 'sweep.csv'}", soft_wrap=True)
        return rows


def _error_text(log: Path, status: int) -> str:
    """The last line that a failed job printed; of a killed one also how."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no output"
    killed = f"killed by {signal.Signals(-status).name}; " if status < 0 else ""
    return f"{killed}{last} (see {log})"


class _FailedJob(JobReturn):
    """Raises its error without Hydra's extra lines about it."""

    @property
    def return_value(self) -> Any:
        raise self._return_value

    @return_value.setter
    def return_value(self, error: Any) -> None:
        self._return_value = error


def _job_returns(jobs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[JobReturn]:
    n_failed = sum(job["status"] == "failed" for job in jobs)
    returns = []
    for job, row in zip(jobs, rows, strict=True):
        failed = job["status"] == "failed"
        returned = (_FailedJob if failed else JobReturn)(overrides=job["overrides"], working_dir=str(job["folder"]))
        returned.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
        # A sweeper that searches minimises the validation loss.
        returned.return_value = (
            SmetError(f"{n_failed} of {len(jobs)} runs failed", exit_status=1) if failed else row["eval_loss"]
        )
        returns.append(returned)
    return returns
