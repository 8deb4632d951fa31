"""Which launchers there are, what each needs, and what each does with its jobs; nothing is trained."""

import csv
import json
import signal
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from hydra_plugins.smet_launcher._base import folder_name, swept_overrides
from hydra_plugins.smet_launcher._job import Job, JobProcess
from hydra_plugins.smet_launcher._submitted import PRE_EMPTION_S, SubmittedJob
from smet_train.config.compose import compose_settings
from smet_train.config.launch import launch
from smet_train.config.schema import Config
from smet_train.errors import ConfigError, SmetError

pytestmark = pytest.mark.slow

DENSITIES = ["-m", "sparsity.density=0.1,0.2,0.3"]


def train(_config: Config, _folder: Path) -> int:
    raise AssertionError("a sweep trains in processes of its own")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What the jobs would run as; all of them are done at once."""
    monkeypatch.chdir(tmp_path)
    found: list[list[str]] = []

    def run(process: JobProcess) -> None:
        found.append(process._job.command)
        process._job.status = "done"

    monkeypatch.setattr(JobProcess, "run", run)
    return found


@pytest.mark.parametrize("name", ["basic", "child_process", "joblib"])
def test_every_launcher_of_this_machine_runs_each_job_as_a_process_in_its_folder(
    name: str, commands: list[list[str]]
) -> None:
    assert launch(train, [*DENSITIES, f"hydra/launcher={name}"]) == 0
    (sweep,) = Path("multirun").absolute().iterdir()
    assert len(commands) == 3
    for command in commands:
        assert command[:4] == [sys.executable, "-P", "-m", "smet_train"]
        assert command[-1] == f"hydra.run.dir='{sweep / command[-2]}'"
    with (sweep / "sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 3


def test_without_a_launcher_it_is_basic_and_names_of_other_plugins_mean_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
    Plugins.instance()  # tells Hydra once what it has itself
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", deepcopy(store.repo))
    store.repo.pop("schema.yaml", None)  # as before anything of ours was told
    store.store(group="hydra/launcher", name="submitit_slurm", node=theirs)
    found = [
        compose_settings(words, "train", None).hydra.launcher._target_.rpartition(".")[2]
        for words in ([], ["hydra/launcher=submitit_slurm"], ["+cluster=slurm"])
    ]
    assert found == ["ChildProcessLauncher", "SlurmLauncher", "SlurmLauncher"]


def test_a_launcher_that_would_not_keep_jobs_apart_is_refused(tmp_path: Path, commands: list[list[str]]) -> None:
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "ray.yaml").write_text("_target_: hydra_plugins.ray.RayLauncher\n")
    with pytest.raises(ConfigError, match=r"hydra/launcher=ray would not keep jobs apart; choose one of basic, child_"):
        launch(train, [*DENSITIES, "hydra/launcher=ray", "--config-dir", str(tmp_path)])
    assert not commands
    assert not Path("multirun").exists()


def test_jobs_find_the_yaml_files_that_the_sweep_was_composed_from(tmp_path: Path, commands: list[list[str]]) -> None:
    folder = tmp_path / "mine" / "cluster"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("# @package _global_\nhydra:\n  launcher:\n    n_jobs: 2\n")
    assert launch(train, [*DENSITIES, "+cluster=own", "--config-dir", "mine"]) == 0
    assert all(command[4:6] == ["--config-dir", str(tmp_path / "mine")] for command in commands)
    # where the jobs run is not what they are
    assert launch(train, DENSITIES) == 0
    assert len(list(Path("multirun").iterdir())) == 1


NEEDS = [
    (["hydra/launcher=joblib"], "joblib", "needs joblib; write pip install 'smet-train[joblib]'"),
    (["hydra/launcher=submitit_local"], "submitit", "needs submitit; write pip install 'smet-train[cluster]'"),
    (["hydra/sweeper=optuna"], "optuna", "needs optuna; write pip install 'smet-train[optuna]'"),
]


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(("words", "package", "told"), NEEDS, ids=lambda value: str(value))
def test_a_package_that_is_missing_is_named(
    words: list[str], package: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        launch(train, [*DENSITIES, *words])
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("multirun").exists()


MISTAKES = [
    (["hydra/launcher=submitit_slurm"], "needs sbatch and srun, which are not here"),
    (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "at least one job has to run at a time"),
    (["hydra/launcher=submitit_local", "hydra.launcher.n_jobs=0"], "at least one job has to run at a time"),
    (["hydra/launcher=submitit_local", "hydra.launcher.retries=-1"], "is out of range; write 0 or more"),
    (["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=long"], "timeout_min=long is not a whole number"),
    (["hydra/launcher=submitit_local", "hydra.launcher.partition=gpu"], "unknown key hydra.launcher.partition"),
]


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=lambda value: str(value))
def test_a_mistake_is_told_and_makes_no_folder(words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError) as error:
        launch(train, [*DENSITIES, *words])
    assert told in str(error.value)
    assert not Path("multirun").exists()


@pytest.mark.usefixtures("commands")
def test_what_submitit_does_not_take_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise NameError("Unknown argument 'name'\nand more")

    monkeypatch.setattr(submitit.AutoExecutor, "update_parameters", refuse)
    with pytest.raises(ConfigError, match="hydra.launcher: submitit does not take this: Unknown argument 'name'$"):
        launch(train, [*DENSITIES, "hydra/launcher=submitit_local"])


def test_a_failed_job_is_tried_again_and_a_stopped_one_is_not_begun(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"import sys; f = open({str(count)!r}, 'a+'); f.write('x'); sys.exit(f.tell() < 2 and 'broken')"
    told: list[str] = []
    job = Job(1, "job", [], tmp_path / "job", [sys.executable, "-c", script])
    JobProcess(job, retries=2, tell=told.append).run()
    assert (job.status, job.error, count.read_text()) == ("done", None, "xx")
    assert len(told) == 1
    assert told[0].startswith("failed: broken (see ")
    again = Job(2, "job", [], tmp_path / "job", job.command)
    process = JobProcess(again)
    process.stop(15)
    process.run()
    assert (again.status, count.read_text()) == ("stopped", "xx")


def printer(folder: Path) -> Job:
    """A job that prints what it has behind its command, and fails the first time."""
    marked = str(folder)
    script = f"import os, sys; print(sys.argv[1:]); os.path.exists({marked!r}) or (os.mkdir({marked!r}), 1 / 0)"
    command = [sys.executable, "-c", script, "seed=1"]
    return Job(1, "job", [], folder.parent / "job", command, again=["checkpoint.resume=auto"])


def printed(job: Job) -> list[str]:
    return [line for line in (job.folder / "console.log").read_text().splitlines() if line.startswith("['seed")]


FIRST, FURTHER = "['seed=1']", "['seed=1', 'checkpoint.resume=auto']"


def test_what_a_further_attempt_finds_is_its_own_and_a_new_sweeps_first_one_is_as_typed(tmp_path: Path) -> None:
    job = printer(tmp_path / "begun")
    JobProcess(job, retries=1).run()
    assert (job.status, printed(job)) == ("done", [FIRST, FURTHER])
    JobProcess(job, retries=1).run()
    assert printed(job) == [FIRST, FURTHER, FIRST]  # and the log keeps what it had


def test_the_error_of_a_silent_attempt_is_not_an_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "console.log").write_text("the error of long ago\n")
    job = Job(1, "job", [], tmp_path / "job", [sys.executable, "-c", "raise SystemExit(1)"])
    JobProcess(job).run()
    assert job.error == f"no output (see {tmp_path / 'job' / 'console.log'})"


@pytest.mark.parametrize(("words", "again"), [([], []), (["checkpoint.resume=never"], ["checkpoint.resume=auto"])])
def test_a_fresh_sweep_goes_on_with_a_job_that_has_begun(
    words: list[str], again: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []

    def run(process: JobProcess) -> None:
        found.append(process._job.again)
        process._job.status = "done"

    monkeypatch.setattr(JobProcess, "run", run)
    assert launch(train, [*DENSITIES, *words]) == 0
    assert found == [again] * 3


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signals that a submitted job takes over are given back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("restarts", "first"), [(None, FIRST), ("0", FIRST), ("1", FURTHER)])
def test_a_job_that_slurm_started_anew_by_itself_goes_on(
    restarts: str | None, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    (tmp_path / "begun").mkdir()
    job = printer(tmp_path / "begun")
    assert SubmittedJob(job)().status == "done"
    assert printed(job) == [first]


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_pre_empted_job_saves_and_waits_for_slurm_to_requeue_it(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    waited: list[float] = []
    monkeypatch.setattr("hydra_plugins.smet_launcher._submitted.time.sleep", waited.append)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    job = SubmittedJob(Job(1, "job", [], tmp_path / "job", [sys.executable, "-c", script]))()
    assert job.status == "stopped"
    assert job.error == "SIGTERM: saved before it was finished; the same command goes on with it"
    assert (tmp_path / "job" / "console.log").read_text() == "saved\n"
    assert waited == ([PRE_EMPTION_S] if executor == "slurm" else [])


def test_a_job_is_named_by_what_the_sweep_chose() -> None:
    overrides = ["method=set", "seed=2", "sparsity.density=0.1"]
    assert swept_overrides(overrides, ["method=set", "seed=1,2", "sparsity.density=0.1"]) == ["seed=2"]
    assert swept_overrides(overrides, overrides) == overrides


def test_a_folders_name_fits_the_file_system_and_tells_values_apart() -> None:
    assert folder_name(["seed=2", "method=set"]) == "seed=2,method=set"
    assert folder_name([]) == "defaults"
    files = ["data.files=[a/b.txt]", "data.files=[a_b.txt]", "data.files=[a/b/c.txt]", "data.files=[a/b_c.txt]"]
    long = ["\u4e2d" * 90, "\u4e2d" * 91, "a" + "\u4e2d" * 90, "a" * 300, "a" * 301]
    names = [folder_name([text]) for text in (*files, *long)]
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name.encode()) <= 200 and "\ufffd" not in name for name in names)


def test_the_time_of_a_job_that_was_finished_before_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    took = iter([50.0, 60.0, 70.0, 1.0, 2.0, 3.0])
    status = iter(["done", "failed", "done", "done", "done", "done"])
    steps = iter([6, 4, 6, 6, 6, 8])

    def run(process: JobProcess) -> None:
        job = process._job
        job.folder.mkdir(exist_ok=True)
        job.wall_s, job.status = next(took), next(status)
        event = {"event": "train", "step": next(steps), "tokens": 1, "loss": 1.0, "tokens_per_s": 1.0}
        (job.folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")

    monkeypatch.setattr(JobProcess, "run", run)
    with pytest.raises(SmetError, match="1 of 3 runs failed"):
        launch(train, DENSITIES)
    assert launch(train, DENSITIES) == 0
    (sweep,) = Path("multirun").iterdir()
    with (sweep / "sweep.csv").open(newline="") as file:
        assert [row["wall_s"] for row in csv.DictReader(file)] == ["50.0", "2.0", "3.0"]  # the last was trained further


@pytest.mark.usefixtures("commands")
def test_a_job_that_is_not_done_fails_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobProcess, "run", lambda process: setattr(process._job, "status", "failed"))
    with pytest.raises(SmetError, match="3 of 3 runs failed") as error:
        launch(train, DENSITIES)
    assert error.value.exit_status == 1
