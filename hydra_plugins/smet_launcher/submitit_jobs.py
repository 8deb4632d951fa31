"""Jobs of a sweep submitted by submitit: to SLURM, or to processes of this machine that are watched as SLURM would."""

import os
import shutil
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.smet_launcher._base import JobLauncher
from hydra_plugins.smet_launcher._job import Job
from hydra_plugins.smet_launcher._submitted import SubmittedJob
from smet_train.errors import ConfigError


class SubmititLauncher(JobLauncher):
    """Submits jobs and waits for them (see :class:`JobLauncher`).

    submitit's files are in ``.submitit`` in the sweep's folder; what a job prints is in its own ``console.log``.

    Args:
        retries: see :class:`JobLauncher`; within one submission.
        max_num_timeout: how often a job is submitted anew when its time is over.
        parameters: those of submitit, see its ``AutoExecutor.update_parameters``; None leaves one out.
    """

    cluster: str
    poll_s: float

    def __init__(self, retries: int = 0, max_num_timeout: int = 0, **parameters: Any) -> None:
        super().__init__(retries)
        self._max_num_timeout = max_num_timeout
        self.parameters: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
        }
        self.running: list[tuple[Job, Any]] = []  # jobs, and submitit's view of each

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :meth:`JobLauncher.setup`.

        Raises:
            ConfigError: if submitit is not installed, or a setting makes no sense.
        """
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"hydra/launcher=submitit_{self.cluster} needs submitit; write pip install 'smet-train[cluster]'"
            ) from error
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @abstractmethod
    def executor_parameters(self) -> dict[str, Any]:
        """The parameters as submitit's AutoExecutor takes them."""

    @property
    @abstractmethod
    def places(self) -> int | None:
        """How many jobs may be submitted at a time; None for all."""

    def run_all(self, jobs: list[Job]) -> None:
        """See :meth:`JobLauncher.run_all`."""
        executor = self._executor()
        waiting = list(jobs)
        while self.running or (waiting and self.stopped_by is None):
            if self.stopped_by is None:
                free = len(waiting) if self.places is None else self.places - len(self.running)
                self._submit(executor, waiting[:free])
                del waiting[:free]
            for both in [both for both in self.running if both[1].done()]:
                self.running.remove(both)
                self._collect(*both)
            if self.running:
                time.sleep(self.poll_s)

    def _executor(self) -> Any:
        import submitit

        most = {f"{self.cluster}_max_num_timeout": self._max_num_timeout}
        executor = submitit.AutoExecutor(self.sweep_folder / ".submitit" / "%j", cluster=self.cluster, **most)
        try:
            executor.update_parameters(**self.executor_parameters())
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: submitit does not take this: {str(error).splitlines()[0]}") from error
        return executor

    def _submit(self, executor: Any, jobs: list[Job]) -> None:
        """All at once, so that a cluster gets them as an array."""
        from submitit.core.utils import environment_variables
        from submitit.helpers import clean_env

        if not jobs:
            return
        chosen = {name: os.environ[name] for name in ("SUBMITIT_PREEMPT_SIGNAL",) if name in os.environ}
        chosen["PYTHONSAFEPATH"] = "1"  # as other children, a job imports nothing from the working directory
        # A driver that is itself a job of the cluster would hand its own allocation on.
        with clean_env(), environment_variables(**chosen), executor.batch():
            submitted = [executor.submit(SubmittedJob(job, self.retries)) for job in jobs]
        self.running += zip(jobs, submitted, strict=True)
        for job, cluster_job in zip(jobs, submitted, strict=True):
            self.tell(job, f"{job.name} is job {cluster_job.job_id} ...")

    def _collect(self, job: Job, submitted: Any) -> None:
        """What came of a job that has ended."""
        if self.stopped_by is not None:
            self.tell(job, "stopped")
            return
        error = submitted.exception()
        if error is None:
            ended = submitted.result()
            job.status, job.error, job.wall_s = ended.status, ended.error, ended.wall_s
        else:
            job.status = "failed"
            job.error = f"{_last_error(str(error))} (see {submitted.paths.stderr})"
        self.tell(job, f"{job.status} in {job.wall_s:.0f} s")


def _last_error(text: str) -> str:
    """Of what submitit tells about a job that gave no result, the line with the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error: " in line), " ".join(lines[:2]))


class LocalLauncher(SubmititLauncher):
    """``hydra/launcher=submitit_local``: processes of this machine, ``n_jobs`` at a time."""

    cluster, poll_s = "local", 0.2

    def __init__(self, n_jobs: int = 1, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :meth:`SubmititLauncher.setup`.

        Raises:
            ConfigError: also if fewer than one job are to run at a time.
        """
        if self._n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={self._n_jobs}: at least one job has to run at a time")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @property
    def places(self) -> int | None:
        """See :class:`SubmititLauncher`."""
        return self._n_jobs

    def executor_parameters(self) -> dict[str, Any]:
        """See :class:`SubmititLauncher`."""
        return self.parameters

    def stop(self, number: int) -> None:  # noqa: ARG002
        """See :meth:`JobLauncher.stop`. A job's process is watched by another one, which passes SIGTERM on."""
        for _, submitted in self.running:
            if not submitted.done():
                os.kill(int(submitted.job_id), signal.SIGTERM)


_GENERAL = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")


class SlurmLauncher(SubmititLauncher):
    """``hydra/launcher=submitit_slurm``: jobs of a SLURM cluster, an array of them.

    Args:
        requeue: whether SLURM may submit a job anew that it has pre-empted or whose node has failed.
        setup_commands: of the shell, before a job.
        signal_delay_s: how long before the end of its time a run is told to save.
        parameters: see :class:`SubmititLauncher`; those of sbatch that submitit knows without its prefix ``slurm_``.
    """

    cluster, poll_s = "slurm", 2.0

    def __init__(
        self, requeue: bool = True, setup_commands: Sequence[str] = (), signal_delay_s: int = 120, **parameters: Any
    ) -> None:
        super().__init__(**parameters)
        self._requeue = requeue
        self.parameters |= {"setup": list(setup_commands) or None, "signal_delay_s": signal_delay_s}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :meth:`SubmititLauncher.setup`.

        Raises:
            ConfigError: also if there is no SLURM here.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm needs sbatch and srun, which are not here; type the command where jobs "
                "are submitted, or write hydra/launcher=submitit_local"
            )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @property
    def places(self) -> int | None:
        """See :class:`SubmititLauncher`; SLURM keeps to hydra.launcher.array_parallelism."""
        return None

    def executor_parameters(self) -> dict[str, Any]:
        """See :class:`SubmititLauncher`."""
        flag = {"requeue" if self._requeue else "no-requeue": True}
        parameters = {key if key in _GENERAL else f"slurm_{key}": value for key, value in self.parameters.items()}
        own = parameters.get("slurm_additional_parameters") or {}
        if parameters.get("cpus_per_task"):  # which srun does not take over from sbatch
            parameters["slurm_srun_args"] = [f"--cpus-per-task={parameters['cpus_per_task']}"]
        return {**parameters, "slurm_additional_parameters": flag | dict(own)}

    def stop(self, number: int) -> None:  # noqa: ARG002
        """See :meth:`JobLauncher.stop`. What waits in the queue is cancelled."""
        numbers = [submitted.job_id for _, submitted in self.running]
        subprocess.call(["scancel", "--state=PENDING", *numbers])
        subprocess.call(["scancel", "--signal=INT", *numbers])
