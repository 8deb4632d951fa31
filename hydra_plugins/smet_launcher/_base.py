"""What the launchers have in common: names of jobs and their folders, signals, the table at the end."""

import signal
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.smet_launcher._job import Job
from smet_train.config.paths import folder_override
from smet_train.errors import ConfigError, SmetError
from smet_train.offspring import python_of_children

_LONGEST_NAME = 200  # file systems allow 255 bytes
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


def swept_overrides(overrides: Sequence[str], command: Sequence[str]) -> list[str]:
    """Those of a job's ``overrides`` that the sweep has chosen, all of them if the ``command`` sweeps over nothing."""
    same_in_all = {
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in OverridesParser.create().parse_overrides(list(command))
        if not override.is_sweep_override()
    }
    return [override for override in overrides if override not in same_in_all] or list(overrides)


def folder_name(overrides: Sequence[str]) -> str:
    """A job's overrides as the name of one folder; an overlong one is cut. One that does not hold them letter by letter
    is told apart by a hash."""
    text = ",".join(overrides)
    name = text.replace("/", "_") or "defaults"
    if len(name.encode()) > _LONGEST_NAME:
        name = name.encode()[: _LONGEST_NAME // 2].decode(errors="ignore")  # not half a letter
    elif "/" not in text:
        return name
    return f"{name}-{sha256(text.encode()).hexdigest()[:8]}"


class JobLauncher(Launcher):
    """Runs jobs, each as ``python -m smet_train <overrides>`` in a folder named by what the sweep chose for it, or by
    hydra.sweep.subdir.

    Afterwards the table over all jobs is printed and written to ``sweep.csv`` in the sweep's folder. SIGINT and SIGTERM
    are passed to the running jobs, which save and end; the jobs after them are not started.

    Args:
        retries: how often a job that failed is started anew; it goes on from its newest checkpoint. A user's mistake
            is not tried again.
    """

    def __init__(self, retries: int = 0) -> None:
        self.retries = retries
        self.jobs: list[Job] = []  # of all batches, in order
        self.in_batches = False  # whether a sweeper calls launch more than once, and has the table printed at its end
        self.stopped_by: int | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Called by Hydra before :meth:`launch`; here a mistake in the settings is told as one.

        Raises:
            ConfigError: if a job is to be tried again less than never.
        """
        if self.retries < 0:
            raise ConfigError(f"hydra.launcher.retries={self.retries} is out of range; write 0 or more")
        self._context = hydra_context
        self._config = config

    @abstractmethod
    def run_all(self, jobs: list[Job]) -> None:
        """Run ``jobs``, telling of each as it goes; fill in what came of them. A stopped one is left "stopped"."""

    @abstractmethod
    def stop(self, number: int) -> None:
        """Pass a signal to the jobs that run. May be called within :meth:`run_all`, from a signal handler."""

    @property
    def sweep_folder(self) -> Path:
        """Absolute."""
        return Path(self._config.hydra.sweep.dir).absolute()

    @cached_property
    def console(self) -> Any:
        """Where the sweep tells what it does."""
        from smet_train.tracking.console import open_console  # imports rich: only a sweep's driver pays for it

        return open_console()

    def tell(self, job: Job, text: str) -> None:
        """Print a line about a job."""
        self.console.print(f"[{job.number}] {text}", soft_wrap=True, markup=False)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; a failed one is FAILED in what is returned and does not stop the others."""
        self.sweep_folder.mkdir(parents=True, exist_ok=True)
        jobs = [
            self.prepare(list(overrides), number) for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        self.jobs += jobs
        if not self.in_batches:
            self.console.print(f"sweep of {len(jobs)} runs in {self.sweep_folder}", soft_wrap=True)
        with self._signals():
            self.run_all(jobs)
        if self.stopped_by is not None:
            self.report()
            sys.exit(128 + self.stopped_by)
        losses = [row["eval_loss"] for row in self.report(prints=not self.in_batches)[-len(jobs) :]]
        return _job_returns(jobs, losses)

    def prepare(self, overrides: list[str], number: int) -> Job:
        """The job of these overrides; ``number`` counts from 0."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            config.hydra.job.num = number
        chosen = swept_overrides(overrides, self._config.hydra.overrides.task)
        name = str(config.hydra.sweep.subdir) or folder_name(chosen)
        folder = self.sweep_folder / name
        words = [*_config_options(config), *overrides, folder_override(folder)]
        # What a further attempt finds in the folder is the job's own, which a fresh start would refuse.
        again = ["checkpoint.resume=auto"] if OmegaConf.select(config, "checkpoint.resume") == "never" else []
        return Job(number + 1, name, overrides, folder, [*python_of_children(), "-m", "smet_train", *words], again)

    def report(self, prints: bool = True) -> list[dict[str, Any]]:
        """Write sweep.csv over all jobs up to now, and print it as a table if wanted; returns its rows."""
        from smet_train.analysis.sweep import keep_times, print_sweep_table, sweep_rows, write_sweep_csv

        table = self.sweep_folder / "sweep.csv"
        rows = keep_times(sweep_rows([asdict(job) for job in self.jobs]), table)
        write_sweep_csv(table, rows)
        if prints:
            print_sweep_table(self.console, rows)
            self.console.print(f"table: {table}", soft_wrap=True)
        return rows

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def forward(number: int, _frame: FrameType | None) -> None:
            self.stopped_by = number
            self.stop(number)

        previous = {number: signal.signal(number, forward) for number in _FORWARDED}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _config_options(config: DictConfig) -> list[str]:
    """The options that a job needs to find the YAML files that the sweep was composed from."""
    options = [] if config.hydra.job.config_name == "train" else ["--config-name", config.hydra.job.config_name]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]
    return options


class _FailedJob(JobReturn):
    """Raises its error without Hydra's extra lines about it."""

    @property
    def return_value(self) -> Any:
        raise self._return_value

    @return_value.setter
    def return_value(self, error: Any) -> None:
        self._return_value = error


def _job_returns(jobs: list[Job], losses: list[float | None]) -> list[JobReturn]:
    """For the sweeper: a search minimises the validation loss."""
    n_failed = sum(job.status != "done" for job in jobs)
    returns = []
    for job, loss in zip(jobs, losses, strict=True):
        failed = job.status != "done"
        returned = (_FailedJob if failed else JobReturn)(overrides=job.overrides, working_dir=str(job.folder))
        returned.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
        returned.return_value = SmetError(f"{n_failed} of {len(jobs)} runs failed", exit_status=1) if failed else loss
        returns.append(returned)
    return returns
