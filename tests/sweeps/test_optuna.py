"""A search by Optuna: its trials are jobs, what it has done is kept, and the same command goes on with it."""

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hydra_plugins.smet_launcher._job import JobProcess
from smet_train.config.launch import launch
from smet_train.config.schema import Config
from smet_train.errors import ConfigError, SmetError
from tests import forked

pytestmark = pytest.mark.slow

SEARCH = ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-4, 1e-2))", "sparsity.density=0.1,0.2"]


class Jobs:
    """Stands for processes that train: a trial's loss is its learning rate times 1000, unless it is to fail."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: Callable[[int], bool] = lambda _: False
        self.loss: Callable[[float], float] = lambda lr: 1000 * lr
        self.interrupts_at: int | None = None

    def run(self, process: JobProcess) -> None:
        job = process._job
        if len(self.ran) == self.interrupts_at:
            raise KeyboardInterrupt
        self.ran.append(job.name)
        job.folder.mkdir(parents=True, exist_ok=True)
        fails = self.fails(len(self.ran))
        job.status = "failed" if fails else "done"
        job.error = "it broke" if fails else None
        values = dict(one.split("=", 1) for one in job.overrides)
        event = {"event": "eval", "step": 1, "loss": self.loss(float(values["optimizer.lr"])), "perplexity": 2.0}
        (job.folder / "metrics.jsonl").write_text("" if fails else json.dumps(event) + "\n")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Jobs:
    monkeypatch.chdir(tmp_path)
    found = Jobs()
    monkeypatch.setattr(JobProcess, "run", lambda process: found.run(process))
    return found


def search(*words: str) -> None:
    def train(_config: Config, _folder: Path) -> int:
        raise AssertionError("a sweep trains in processes of its own")

    assert launch(train, [*SEARCH, *words]) == 0


def sweep_folder() -> Path:
    (found,) = Path("multirun").iterdir()
    return found


def rows() -> list[dict[str, str]]:
    with (sweep_folder() / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def trials() -> list[optuna.trial.FrozenTrial]:
    study: Any = optuna.load_study(study_name="smet-train", storage=f"sqlite:///{sweep_folder() / 'optuna.db'}")
    return list(study.trials)


def test_the_least_loss_of_as_many_trials_as_asked_for_is_found_and_written(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    search("hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2", "hydra.launcher.n_jobs=2")
    assert len(jobs.ran) == len(set(jobs.ran)) == len(rows()) == 5
    assert [row["name"] for row in rows()] == [Path(row["folder"]).name for row in rows()]
    best = min(rows(), key=lambda row: float(row["eval_loss"]))
    results = yaml.safe_load((sweep_folder() / "optimization_results.yaml").read_text())
    assert results["best_value"] == float(best["eval_loss"])
    assert ",".join(f"{key}={value}" for key, value in results["best_params"].items()) == best["name"]
    told = capsys.readouterr().out
    assert told.count("val. loss") == 1
    assert f"best: validation loss {float(best['eval_loss']):.4f} with optimizer.lr=" in told


def test_typed_again_it_runs_nothing_and_with_more_trials_only_those(jobs: Jobs) -> None:
    search("hydra.sweeper.n_trials=3")
    before = list(jobs.ran)
    search("hydra.sweeper.n_trials=3")
    assert jobs.ran == before
    assert [row["status"] for row in rows()] == ["done"] * 3
    search("hydra.sweeper.n_trials=5")
    assert jobs.ran[:3] == before
    assert len(set(jobs.ran)) == len(jobs.ran) == len(rows()) == 5


def test_failed_and_interrupted_trials_are_tried_again_with_the_same_values(jobs: Jobs) -> None:
    jobs.fails = lambda count: count == 2
    jobs.interrupts_at = 3
    with pytest.raises(KeyboardInterrupt):
        search("hydra.sweeper.n_trials=4", "hydra.sweeper.max_failure_rate=0.5")
    first = list(jobs.ran)
    states = [trial.state.name for trial in trials()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    jobs.fails, jobs.interrupts_at = lambda _: False, None
    search("hydra.sweeper.n_trials=4", "hydra.sweeper.max_failure_rate=0.5")
    again = jobs.ran[len(first) :]
    assert again[0] == first[1]
    assert len(again) == 2
    assert len(set(jobs.ran)) == len(rows()) == 4
    assert [trial.user_attrs.get("repeats") for trial in trials()][4:] == [1, 3]


def test_more_failures_than_are_let_pass_end_the_search_and_are_listed(jobs: Jobs) -> None:
    jobs.fails = lambda count: count % 2 == 0
    with pytest.raises(SmetError, match=r"2 of 8 trials failed, more than hydra.sweeper.max_failure_rate=0.2") as error:
        search("hydra.sweeper.n_trials=8", "hydra.sweeper.max_failure_rate=0.2")
    assert error.value.exit_status == 1
    assert [row["status"] for row in rows()] == ["done", "failed", "done", "failed"]
    assert rows()[1]["error"] == "it broke"


def test_a_loss_that_is_no_number_is_a_failure(jobs: Jobs) -> None:
    jobs.loss = lambda lr: float("nan") if lr > 0 else lr
    with pytest.raises(SmetError, match="no trial has come to a validation loss") as error:
        search("hydra.sweeper.n_trials=2", "hydra.sweeper.max_failure_rate=1")
    assert error.value.exit_status == 1


def test_trials_with_equal_values_share_a_job(jobs: Jobs) -> None:
    words = ["optimizer.lr=0.001", "sparsity.density=choice(0.1)", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    search(*words)
    assert jobs.ran == ["sparsity.density=0.1"]
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "COMPLETE"]


def test_whole_numbers_are_drawn_from_whole_ones_and_the_preset_searches_rate_and_density(jobs: Jobs) -> None:
    preset = ["-m", "+sweep=optuna_lr_density", "hydra.sweeper.n_trials=3", "seed=int(interval(1, 9))"]
    assert launch(lambda _config, _folder: 0, preset) == 0
    for name in jobs.ran:
        values = dict(one.split("=") for one in name.split(","))
        assert values.keys() == {"optimizer.lr", "sparsity.density", "seed"}
        assert 1e-4 <= float(values["optimizer.lr"]) <= 1e-2
        assert values["sparsity.density"] in ("0.05", "0.1", "0.25")
        assert int(values["seed"]) in range(1, 10)


MISTAKES = [
    (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 is out of range"),
    (["hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs=0 is out of range"),
    (["hydra.sweeper.max_failure_rate=2"], "max_failure_rate=2.0 is out of range; write 0 to 1"),
    (["hydra.sweeper.sampler=best"], "there is no hydra.sweeper.sampler=best; write tpe or random"),
    (["optimizer.lr=1", "sparsity.density=0.1"], "has nothing to search"),
    (["optimizer.lr=tag(log, interval(0.0, 1.0))"], "optimizer.lr=tag(log, interval(0.0, 1.0)): "),
    (["+sweep=typo", "--config-dir", "mine"], "unknown key sparsity.densty"),
    (["hydra/sweeper=basic"], "or have it searched by hydra/sweeper=optuna"),
    (["hydra.launcher.n_jobs=0"], "at least one job has to run at a time"),
]


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=lambda value: str(value))
def test_a_mistake_is_told_and_makes_no_folder(words: list[str], told: str) -> None:
    Path("mine/sweep").mkdir(parents=True)
    typo = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      sparsity.densty: 0.1,0.2\n"
    Path("mine/sweep/typo.yaml").write_text(typo)
    with pytest.raises(ConfigError) as error:
        search(*words)
    assert told in str(error.value)
    assert not Path("multirun").exists()


def test_a_study_of_other_values_is_told_apart(jobs: Jobs) -> None:
    storage = f"hydra.sweeper.storage='sqlite:///{Path('shared.db').absolute()}'"
    search(storage, "hydra.sweeper.n_trials=1")
    with pytest.raises(ConfigError, match=r"has searched other values .* write another hydra.sweeper.study_name"):
        search(storage, "hydra.sweeper.n_trials=2", "sparsity.density=0.1,0.3")
    search(storage, "hydra.sweeper.n_trials=1", "sparsity.density=0.1,0.3", "hydra.sweeper.study_name=other")
    assert len(jobs.ran) == 2


def test_the_same_search_at_the_same_time_is_refused_and_the_first_goes_on(jobs: Jobs) -> None:
    def search_too(_count: int) -> bool:
        if len(jobs.ran) == 1:
            command = [sys.executable, "-m", "smet_train", *SEARCH, "hydra.sweeper.n_trials=2"]
            done = forked.run(command, capture_output=True, text=True, timeout=100)
            told.append((done.returncode, done.stderr))
        return False

    told: list[tuple[int, str]] = []
    jobs.fails = search_too
    search("hydra.sweeper.n_trials=2")
    where = f"{sweep_folder().absolute()}; wait for it, stop it, or choose another folder with hydra.sweep.dir=..."
    assert told == [(2, f"smet-train: another process (pid {os.getpid()}) is training in {where}\n")]
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 2
    search("hydra.sweeper.n_trials=3")
    assert len(jobs.ran) == 3


def test_trials_train(tmp_path: Path, quick: list[str]) -> None:
    command = [sys.executable, "-m", "smet_train", *SEARCH, *quick, "hydra.sweeper.n_trials=3"]
    command += ["hydra.sweeper.n_jobs=3", "hydra.launcher.n_jobs=2"]
    done = forked.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "multirun").iterdir()
    assert len(list(sweep.glob("*/checkpoints/step_00000006"))) == 3
    assert yaml.safe_load((sweep / "optimization_results.yaml").read_text())["best_value"] > 0
