"""The settings ``hydra.launcher.…`` and ``hydra.sweeper.…`` by the name that is chosen, and their defaults.

Names that Hydra or its plugins have too mean ours: theirs would run jobs inside shared processes. ``basic`` is what
Hydra chooses where nothing else is.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

_HERE = "hydra_plugins.smet_launcher"


@dataclass
class ChildProcess:
    """``basic`` and ``child_process``: processes of this machine."""

    _target_: str = f"{_HERE}.child_process.ChildProcessLauncher"
    n_jobs: int = 1  # at a time
    retries: int = 0  # how often a job that failed is started anew


@dataclass
class Joblib:
    """``joblib``: the same, as many at a time as joblib finds cores."""

    _target_: str = f"{_HERE}.joblib_threads.JoblibLauncher"
    n_jobs: int = -1  # at a time; -1 is one to a core, -2 leaves one core
    verbose: int = 0  # how much joblib tells of its progress
    retries: int = 0


@dataclass
class SubmititLocal:
    """``submitit_local``: processes of this machine, watched as a cluster watches its jobs."""

    _target_: str = f"{_HERE}.submitit_jobs.LocalLauncher"
    n_jobs: int = 1
    retries: int = 0
    timeout_min: int = 1440  # of one submission; then the run saves, and the job is submitted anew
    max_num_timeout: int = 5  # how often it is then
    gpus_per_node: int = 0  # how many GPUs a job sees, from the first one on


@dataclass
class SubmititSlurm:
    """``submitit_slurm``: an array of jobs of a SLURM cluster; null is the cluster's default."""

    _target_: str = f"{_HERE}.submitit_jobs.SlurmLauncher"
    name: str = "smet-train"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int | None = 1
    cpus_per_task: int | None = 8
    mem_gb: float | None = None
    timeout_min: int = 1440  # of one submission; then the run saves, and the job is submitted anew
    signal_delay_s: int = 120  # how long before that the run is told to save
    max_num_timeout: int = 100  # how often a job whose time was over is submitted anew
    requeue: bool = True  # whether SLURM may submit a job anew that it pre-empted, or whose node failed
    array_parallelism: int = 256  # jobs at a time
    retries: int = 0  # within one submission
    setup_commands: list[str] = field(default_factory=list)  # of the shell, before a job
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # options of sbatch by their names


@dataclass
class Optuna:
    """``hydra/sweeper=optuna``: trials chosen by the losses of those before."""

    _target_: str = "hydra_plugins.smet_sweeper.optuna_sweeper.OptunaSweeper"
    n_trials: int = 20  # in all; a larger number goes on with a study
    n_jobs: int = 1  # trials that are chosen and launched together
    sampler: str = "tpe"  # or random
    seed: int | None = 1  # of the sampler
    max_failure_rate: float = 0.0  # the search ends when more than this fraction of n_trials has failed
    storage: str | None = None  # a URL as Optuna takes it; null is the file optuna.db in the sweep's folder
    study_name: str = "smet-train"
    params: dict[str, str] | None = None  # what is searched, by setting; as it would be typed


LAUNCHERS: dict[str, type] = {
    "basic": ChildProcess,
    "child_process": ChildProcess,
    "joblib": Joblib,
    "submitit_local": SubmititLocal,
    "submitit_slurm": SubmititSlurm,
}


def store_settings() -> None:
    """Tell Hydra. After its plugins were imported, some of which tell it other things under the same names."""
    store = ConfigStore.instance()
    for name, node in LAUNCHERS.items():
        store.store(group="hydra/launcher", name=name, node=node, provider="smet_launcher")
    store.store(group="hydra/sweeper", name="optuna", node=Optuna, provider="smet_launcher")
