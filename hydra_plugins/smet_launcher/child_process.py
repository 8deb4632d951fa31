"""Each job of a sweep as a child process: no job can end, leak into or disturb another."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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

from smet_train.errors import SmetError

_LONGEST_NAME = 200  # file systems allow 255 bytes
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


@dataclass
class ChildProcessLauncherConfig:
    """What ``hydra/launcher=child_process`` instantiates; it has no settings."""

    _target_: str = "hydra_plugins.smet_launcher.child_process.ChildProcessLauncher"


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
    """Runs jobs one after another, each as ``python -m smet_train <overrides>`` in a folder named by what the sweep
    chose for it, or by hydra.sweep.subdir.

    The output of a job goes to ``console.log`` in its folder. Afterwards the table over all jobs is printed and
    written to ``sweep.csv`` in the sweep's folder. SIGINT and SIGTERM are passed to the running job, which saves and
    ends; the jobs after it are not started.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped_by: int | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Hydra's call before :meth:`launch`: keep what composes the jobs."""
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
        jobs: list[dict[str, Any]] = []
        try:
            for number, overrides in enumerate(job_overrides, start=initial_job_idx):
                job = self._prepare(number, list(overrides), sweep_folder)
                jobs.append(job)
                if self._stopped_by is None:
                    console.print(f"[{number + 1}] {job['name']} ...", soft_wrap=True, markup=False)
                    self._run_job(job)
                    console.print(f"[{number + 1}] {job['status']} in {job['wall_s']:.0f} s", markup=False)
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
            "name": name,
            "overrides": overrides,
            "folder": sweep_folder / name,
            "status": "stopped",
            "error": None,
            "wall_s": 0.0,
        }

    def _run_job(self, job: dict[str, Any]) -> None:
        started_s = time.monotonic()
        job["folder"].mkdir(parents=True, exist_ok=True)
        quoted = str(job["folder"]).replace("'", r"\'").replace("${", r"\${")
        command = [sys.executable, "-m", "smet_train", *job["overrides"], f"hydra.run.dir='{quoted}'"]
        log = job["folder"] / "console.log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C on the terminal reaches this driver alone, which passes it on once.
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            status = self._child.wait()
        self._child = None
        job["wall_s"] = time.monotonic() - started_s
        if self._stopped_by is None:
            job["status"] = "done" if status == 0 else "failed"
        if job["status"] == "failed":
            job["error"] = _error_text(log, status)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stopped_by = number
        if self._child is not None:
            self._child.send_signal(number)

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
