"""Each job of a sweep as a child process: no job can end, leak into or disturb another."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.smet_launcher._base import JobLauncher
from hydra_plugins.smet_launcher._job import Job, JobProcess
from smet_train.errors import ConfigError


class ChildProcessLauncher(JobLauncher):
    """Runs jobs as processes of this machine (see :class:`JobLauncher`).

    Args:
        n_jobs: how many run at a time; they share the cores evenly, unless OMP_NUM_THREADS says otherwise.
        retries: see :class:`JobLauncher`.
    """

    def __init__(self, n_jobs: int = 1, retries: int = 0) -> None:
        super().__init__(retries)
        self.n_jobs = n_jobs
        self._processes: list[JobProcess] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :meth:`JobLauncher.setup`.

        Raises:
            ConfigError: if fewer than one job are to run at a time, or one is to be tried again less than never.
        """
        if self.n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={self.n_jobs}: at least one job has to run at a time")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def run_all(self, jobs: list[Job]) -> None:
        """See :meth:`JobLauncher.run_all`; each job is waited for in a thread."""
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.n_jobs))} if self.n_jobs > 1 else {}
        self._processes = [JobProcess(job, self.retries, threads, tell=partial(self.tell, job)) for job in jobs]
        self.in_threads([partial(self._run, *both) for both in zip(jobs, self._processes, strict=True)])

    def in_threads(self, calls: list[Callable[[], None]]) -> None:
        """Make the calls, ``n_jobs`` at a time."""
        with ThreadPoolExecutor(self.n_jobs) as pool:
            list(pool.map(lambda call: call(), calls))

    def stop(self, number: int) -> None:
        """See :meth:`JobLauncher.stop`."""
        for process in self._processes:
            process.stop(number)

    def _run(self, job: Job, process: JobProcess) -> None:
        """The whole life of a job."""
        if self.stopped_by is not None:
            return
        self.tell(job, f"{job.name} ...")
        process.run()
        self.tell(job, f"{job.status} in {job.wall_s:.0f} s")
