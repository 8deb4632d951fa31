"""``hydra/launcher=joblib``: joblib decides how many jobs run at a time on this machine, each a child process."""

from collections.abc import Callable
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.smet_launcher.child_process import ChildProcessLauncher
from smet_train.errors import ConfigError


class JoblibLauncher(ChildProcessLauncher):
    """Runs jobs by joblib's threads, each of which waits for a child process (see :class:`ChildProcessLauncher`).

    joblib's own processes are not used: they are shared by jobs, and one that is killed ends all.

    Args:
        n_jobs: as joblib takes it: -1 is one to a core, -2 one core less.
        verbose: how much joblib tells of its progress; 0 is nothing.
        retries: see :class:`JobLauncher`.
    """

    def __init__(self, n_jobs: int = -1, verbose: int = 0, retries: int = 0) -> None:
        super().__init__(n_jobs, retries)
        self._verbose = verbose

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :meth:`ChildProcessLauncher.setup`.

        Raises:
            ConfigError: if joblib is not installed, or a setting makes no sense.
        """
        self.n_jobs = _import_joblib().effective_n_jobs(self.n_jobs) if self.n_jobs else 0
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def in_threads(self, calls: list[Callable[[], None]]) -> None:
        """See :meth:`ChildProcessLauncher.in_threads`."""
        joblib = _import_joblib()
        run = joblib.Parallel(n_jobs=self.n_jobs, backend="threading", verbose=self._verbose, batch_size=1)
        run(joblib.delayed(call)() for call in calls)


def _import_joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise ConfigError(
            "hydra/launcher=joblib needs joblib; write pip install 'smet-train[joblib]', or hydra.launcher.n_jobs=2 "
            "without hydra/launcher=joblib"
        ) from error
    return joblib
