"""``hydra/sweeper=optuna``: settings are searched for the least validation loss; each trial is a job of the launcher.

The study is kept in the sweep's folder. The same command goes on with it: trials that failed or were not finished are
tried again with the same values, which their folders are named by, and further ones come up to ``n_trials``.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.smet_sweeper._search_space import overrides_of, read_space
from smet_train.errors import ConfigError, SmetError
from smet_train.train.lock import run_folder_lock

_REPEATS = "repeats"  # which trial another one tries again
_SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}
RESULTS_NAME = "optimization_results.yaml"


class OptunaSweeper(Sweeper):
    """Asks Optuna for values, has the launcher run them, and tells Optuna the validation losses.

    Args:
        n_trials: how many there are in all, repeated ones not counted.
        n_jobs: how many are asked for and launched together; the launcher decides how many of them run at a time.
        sampler: "tpe" or "random".
        seed: of the sampler; None is another one each time.
        max_failure_rate: the search ends when more than this fraction of ``n_trials`` has failed.
        storage: a URL as Optuna takes it; None is the file ``optuna.db`` in the sweep's folder.
        study_name: in the storage.
        params: what is searched beside what the command line sweeps over, by setting, as it would be typed.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        seed: int | None,
        max_failure_rate: float,
        storage: str | None,
        study_name: str,
        params: Mapping[str, str] | None,
    ) -> None:
        self._n_trials = n_trials
        self._n_jobs = n_jobs
        self._sampler = sampler
        self._seed = seed
        self._max_failure_rate = max_failure_rate
        self._storage = storage
        self._study_name = study_name
        self._params = dict(params or {})
        self._failures = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before :meth:`sweep`.

        Raises:
            ConfigError: if Optuna is not installed, or a setting makes no sense.
        """
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError("hydra/sweeper=optuna needs optuna; write pip install 'smet-train[optuna]'") from error
        for key, number in (("n_trials", self._n_trials), ("n_jobs", self._n_jobs)):
            if number < 1:
                raise ConfigError(f"hydra.sweeper.{key}={number} is out of range; write 1 or more")
        if not 0 <= self._max_failure_rate <= 1:
            raise ConfigError(f"hydra.sweeper.max_failure_rate={self._max_failure_rate} is out of range; write 0 to 1")
        if self._sampler not in _SAMPLERS:
            raise ConfigError(f"there is no hydra.sweeper.sampler={self._sampler}; write {' or '.join(_SAMPLERS)}")
        self.config = config
        self.hydra_context = hydra_context
        launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        launcher.in_batches = True
        self._jobs, self._config_loader = launcher, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> None:
        """Search; the table and the best trial are printed at the end, and the best one written to RESULTS_NAME.

        Raises:
            ConfigError: if there is nothing to search.
            CheckpointError: if another process searches in the sweep's folder, or it can't be written.
            SmetError: if too many trials have failed.
        """
        typed = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        self._space = read_space(typed, self._config_loader)
        folder: Path = self._jobs.sweep_folder
        # A second one would take the trials that run for unfinished ones.
        with run_folder_lock(folder, setting="hydra.sweep.dir"):
            self._search(folder)

    def _search(self, folder: Path) -> None:
        study = self._open_study(folder)
        to_do = self._take_up(study)
        self._jobs.console.print(f"search of {self._n_trials} trials in {folder}", soft_wrap=True)
        while to_do > 0:
            batch = [self._ask(study) for _ in range(min(to_do, self._n_jobs))]
            to_do -= len(batch)
            self._run(study, batch)
            if self._failures > self._max_failure_rate * self._n_trials:
                self._jobs.report()
                raise SmetError(
                    f"{self._failures} of {self._n_trials} trials failed, more than "
                    f"hydra.sweeper.max_failure_rate={self._max_failure_rate:g} lets pass",
                    exit_status=1,
                )
        self._jobs.report()
        self._tell_best(study, folder)

    def _open_study(self, folder: Path) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self._storage or f"sqlite:///{folder / 'optuna.db'}",
            study_name=self._study_name,
            direction="minimize",
            load_if_exists=True,
        )
        # A sampler that began anew with the same seed would draw what it has drawn.
        seed = None if self._seed is None else self._seed + len(study.trials)
        study.sampler = getattr(optuna.samplers, _SAMPLERS[self._sampler])(seed=seed)
        return study

    def _ask(self, study: Any) -> Any:
        try:
            return study.ask(self._space.searched)
        except ValueError as error:
            raise ConfigError(
                f"the study {self._study_name} has searched other values ({error}); write another "
                "hydra.sweeper.study_name"
            ) from error

    def _take_up(self, study: Any) -> int:
        """Let Optuna ask first for what an earlier sweep has begun and not finished; returns how many are to be run."""
        from optuna.trial import TrialState

        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
        first: dict[int, Any] = {}  # by number, the trials that repeat none
        finished, waiting = set(), set()
        for trial in study.get_trials():
            number = trial.user_attrs.get(_REPEATS, trial.number)
            first.setdefault(number, trial)
            if trial.state == TrialState.COMPLETE:
                finished.add(number)
                self._list_finished(trial)
            elif trial.state == TrialState.WAITING:
                waiting.add(number)
        for number in sorted(set(first) - finished - waiting):
            study.enqueue_trial(first[number].params, user_attrs={_REPEATS: number})
        return len(set(first) - finished) + max(0, self._n_trials - len(first))

    def _list_finished(self, trial: Any) -> None:
        job = self._jobs.prepare(overrides_of(self._space, trial.params), len(self._jobs.jobs))
        job.status = "done"
        self._jobs.jobs.append(job)

    def _run(self, study: Any, trials: list[Any]) -> None:
        """Run a batch and tell what came of it. Trials with equal values share a folder, and so a job."""
        from optuna.trial import TrialState

        overrides = [tuple(overrides_of(self._space, trial.params)) for trial in trials]
        different = list(dict.fromkeys(overrides))
        returned = self._jobs.launch(different, initial_job_idx=len(self._jobs.jobs))
        losses = dict(zip(different, map(_loss, returned), strict=True))
        for trial, chosen in zip(trials, overrides, strict=True):
            if losses[chosen] is None:
                self._failures += 1
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, losses[chosen])

    def _tell_best(self, study: Any, folder: Path) -> None:
        from optuna.trial import TrialState

        if not study.get_trials(states=[TrialState.COMPLETE]):
            raise SmetError("no trial has come to a validation loss; the table says what became of each", exit_status=1)
        best = study.best_trial
        chosen = [one for one in overrides_of(self._space, best.params) if one.partition("=")[0] in best.params]
        results = {"name": "optuna", "best_params": dict(one.split("=", 1) for one in chosen), "best_value": best.value}
        OmegaConf.save(OmegaConf.create(results), folder / RESULTS_NAME)
        self._jobs.console.print(
            f"best: validation loss {best.value:.4f} with {' '.join(chosen)} ({folder / RESULTS_NAME})",
            soft_wrap=True, markup=False,
        )  # fmt: skip


def _loss(returned: Any) -> float | None:
    """The validation loss of a job; None if it failed or has none that is a number."""
    try:
        loss = returned.return_value
    except SmetError:
        return None
    return loss if loss is not None and math.isfinite(loss) else None
