"""Runs that are killed, stopped and swept."""

import csv
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from smet_train.tracking.jsonl import read_events
from smet_train.tracking.names import TIME_FIELDS
from smet_train.train.lock import LOCK_NAME
from tests.programs import BOTH

pytestmark = pytest.mark.slow

SmetTrain = Callable[..., subprocess.CompletedProcess[str]]
SmetTrainProcess = Callable[..., subprocess.Popen[str]]

STEPS, INTERVAL, SAVED = 60, 10, 4


@pytest.fixture
def long_run(quick: list[str]) -> list[str]:
    """A topology update every 10 steps, a checkpoint every 4."""
    return [
        *quick,
        f"train.steps={STEPS}",
        f"topology.interval={INTERVAL}",
        f"checkpoint.interval={SAVED}",
        "checkpoint.keep=100",
        "train.eval_interval=20",
        "tracking.probe_windows=2",
        "tracking.spike_horizon_steps=8",
    ]


def steps_done(folder: Path) -> int:
    """The last step in the metrics of a run that is being written."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return 0
    return max((e["step"] for e in read_events(metrics) if e["event"] == "train"), default=0)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until the run in ``folder`` has done ``step`` steps."""
    deadline_s = time.monotonic() + 200
    while steps_done(folder) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def holder(folder: Path) -> int:
    """The process that trains in ``folder``."""
    pid, _, _ = (folder / LOCK_NAME).read_text().partition(" ")
    return int(pid)


def trace(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in event.items() if key not in TIME_FIELDS}
        for event in read_events(folder / "metrics.jsonl")
        if event["event"] != "memory"
    ]


def tensors(folder: Path) -> dict[str, bytes]:
    path = folder / "checkpoints" / f"step_{STEPS:08d}"
    found = {file.name: file.read_bytes() for file in path.glob("*.safetensors")}
    assert {"model.safetensors", "optimizer.safetensors", "random.safetensors"} < set(found)
    return found


@BOTH
def test_a_run_killed_at_random_steps_equals_the_unbroken_one_bit_for_bit(
    smet_train: SmetTrain, smet_train_process: SmetTrainProcess, tmp_path: Path, long_run: list[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = smet_train(*long_run, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr

    # Twice, each time with topology updates before and after.
    draw = random.Random(time.time_ns())
    for first, last in ((INTERVAL + 2, 28), (32, STEPS - INTERVAL - 2)):
        process = smet_train_process(*long_run, f"hydra.run.dir={broken}")
        wait_for_step(process, broken, draw.randint(first, last))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = smet_train("resume", str(broken))
    assert done.returncode == 0, done.stderr
    assert "resumed     at step" in done.stdout
    assert len((broken / "resumes.jsonl").read_text().splitlines()) == 2

    assert tensors(broken) == tensors(whole)
    assert trace(broken) == trace(whole)
    assert sum(event["event"] == "topology" for event in trace(whole)) == STEPS // INTERVAL - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_run_saves_exits_cleanly_and_goes_on(
    smet_train: SmetTrain,
    smet_train_process: SmetTrainProcess,
    tmp_path: Path,
    long_run: list[str],
    number: signal.Signals,
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, f"hydra.run.dir={folder}", "checkpoint.interval=0"]
    process = smet_train_process(*arguments)
    wait_for_step(process, folder, 5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"{number.name}: stopped at step" in output
    assert "Traceback" not in output
    stopped_at = steps_done(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{stopped_at:08d}"]
    done = smet_train(*arguments)
    assert f"resumed     at step {stopped_at}" in done.stdout
    assert [e["step"] for e in trace(folder) if e["event"] == "train"] == list(range(1, STEPS + 1))


def test_the_same_command_finds_its_run_and_never_starts_another(
    smet_train: SmetTrain, tmp_path: Path, quick: list[str]
) -> None:
    assert smet_train(*quick).returncode == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    again = smet_train(*quick)
    assert (again.returncode, "This run is finished at step 6" in again.stdout) == (0, True)
    extended = smet_train(*quick, "train.steps=7", "tracking.spike_horizon_steps=5")
    assert "resumed     at step 6" in extended.stdout
    assert list((tmp_path / "outputs").iterdir()) == [folder]
    fresh = smet_train(*quick, "checkpoint.resume=never")
    assert fresh.returncode == 0, fresh.stderr
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == [folder.name, f"{folder.name}-2"]


def test_a_folder_is_enough_to_go_on_and_a_finished_one_says_so(
    smet_train: SmetTrain, tmp_path: Path, quick: list[str]
) -> None:
    assert smet_train(*quick, "hydra.run.dir=one run/{x}").returncode == 2
    assert smet_train(*quick, "hydra.run.dir='one run/it\\'s'").returncode == 0
    folder = "one run/it's"
    again = smet_train("resume", folder)
    assert (again.returncode, "This run is finished at step 6" in again.stdout) == (0, True)
    longer = smet_train("resume", folder, "train.steps=8")
    assert longer.returncode == 0, longer.stderr
    assert "changed     train.steps=8 (was 6)" in longer.stdout
    assert "follow a run of 8 steps" in longer.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["one run"]


def test_a_second_process_in_the_same_folder_is_refused(
    smet_train: SmetTrain, smet_train_process: SmetTrainProcess, tmp_path: Path, long_run: list[str]
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "train.steps=100000", f"hydra.run.dir={folder}"]
    process = smet_train_process(*arguments)
    wait_for_step(process, folder, 1)
    second = smet_train(*arguments)
    process.kill()
    process.communicate()
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert str(process.pid) in second.stderr


def test_a_sweep_runs_every_job_and_lists_the_failed_one(
    smet_train: SmetTrain, tmp_path: Path, quick: list[str]
) -> None:
    command = ["-m", *quick, "sparsity.density=0.05,1.5,0.25"]
    done = smet_train(*command)
    assert done.returncode == 1
    assert done.stderr == "smet-train: 1 of 3 runs failed\n"
    (sweep,) = (tmp_path / "multirun").iterdir()
    with (sweep / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert [bool(row["eval_loss"]) for row in rows] == [True, False, True]
    assert "sparsity.density=1.5 is out of range" in rows[1]["error"]
    for row, density in zip(rows, ("0.05", "1.5", "0.25"), strict=True):
        assert row["name"] == f"sparsity.density={density}"
        assert Path(row["folder"]) == sweep / row["name"]
    assert (Path(rows[0]["folder"]) / "config.yaml").is_file()
    assert "sparsity.density=1.5" in done.stdout
    # typed again, finished runs are found finished
    again = smet_train(*command)
    assert again.returncode == 1
    assert list((tmp_path / "multirun").iterdir()) == [sweep]
    assert "finished at step 6" in (Path(rows[0]["folder"]) / "console.log").read_text()


def first_job(sweeps: Path) -> Path:
    """The folder of the first job of the only sweep, when it trains."""
    deadline_s = time.monotonic() + 200
    while not (started := list(sweeps.glob("*/*/metrics.jsonl"))) or steps_done(started[0].parent) < 3:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return started[0].parent


@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]], ids=["basic", "joblib"]
)
def test_a_stopped_sweep_passes_the_signal_on_and_starts_no_further_job(
    smet_train_process: SmetTrainProcess, tmp_path: Path, long_run: list[str], launcher: list[str]
) -> None:
    """The basic one's job gets the signal itself too, as from systemd or SLURM, and so twice."""
    process = smet_train_process("-m", *long_run, "train.steps=100000", "seed=1,2", *launcher)
    job = first_job(tmp_path / "multirun")
    trains = holder(job)
    process.send_signal(signal.SIGINT)
    if not launcher:
        os.kill(trains, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    (sweep,) = (tmp_path / "multirun").iterdir()
    with (sweep / "sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["stopped", "stopped"]
    ended = read_events(job / "metrics.jsonl")[-1]
    assert ended["reason"] == "SIGINT"
    assert (job / "checkpoints" / f"step_{ended['step']:08d}").is_dir()
    assert "Traceback" not in output


@BOTH
def test_the_job_of_a_sweep_that_was_killed_saves_and_ends(
    smet_train_process: SmetTrainProcess, tmp_path: Path, long_run: list[str]
) -> None:
    process = smet_train_process("-m", *long_run, "train.steps=100000", "seed=1,2")
    job = first_job(tmp_path / "multirun")
    trains = holder(job)
    process.kill()
    deadline_s = time.monotonic() + 60
    while psutil.pid_exists(trains) and psutil.Process(trains).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    ended = read_events(job / "metrics.jsonl")[-1]
    assert ended["reason"] == "SIGTERM"
    assert (job / "checkpoints" / f"step_{ended['step']:08d}").is_dir()


@pytest.mark.timeout(700)
def test_a_sweep_of_several_at_a_time_loses_killed_jobs_alone_and_makes_up_for_them_when_typed_again(
    smet_train: SmetTrain, smet_train_process: SmetTrainProcess, tmp_path: Path, long_run: list[str]
) -> None:
    command = ["-m", *long_run, "sparsity.density=0.05,0.25", "optimizer.lr=0.0005,0.001"]
    command.append("hydra.launcher.n_jobs=2")
    process = smet_train_process(*command)
    doomed = ("sparsity.density=0.05,optimizer.lr=0.001", "sparsity.density=0.25,optimizer.lr=0.0005")
    deadline_s = time.monotonic() + 280
    folder = None
    for name in doomed:
        while folder is None or steps_done(folder / name) < 10:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
            folder = next(iter(tmp_path.glob("multirun/*")), None)
        os.kill(holder(folder / name), signal.SIGKILL)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 1
    assert "2 of 4 runs failed" in output
    (sweep,) = (tmp_path / "multirun").iterdir()

    def table() -> dict[str, dict[str, str]]:
        with (sweep / "sweep.csv").open(newline="") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    rows = table()
    assert len(rows) == 4
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(doomed)
    assert all("killed by SIGKILL" in rows[name]["error"] for name in doomed)
    written = {name: (sweep / name / "metrics.jsonl").stat().st_mtime_ns for name in rows}

    again = smet_train(*command)
    assert again.returncode == 0, again.stderr
    rows = table()
    assert [row["status"] for row in rows.values()] == ["done"] * 4
    assert [row["step"] for row in rows.values()] == [str(STEPS)] * 4
    assert all(row["eval_loss"] for row in rows.values())
    rewritten = {name for name in rows if (sweep / name / "metrics.jsonl").stat().st_mtime_ns != written[name]}
    assert rewritten == set(doomed)


def test_a_job_that_fails_is_tried_again_as_often_as_asked_and_a_mistake_is_not(
    smet_train_process: SmetTrainProcess, tmp_path: Path, long_run: list[str]
) -> None:
    words = [
        "checkpoint.resume=never",
        "hydra.launcher.retries=1",
    ]  # fresh, its second attempt is not
    process = smet_train_process("-m", *long_run, "sparsity.density=0.1,1.5", *words)
    deadline_s = time.monotonic() + 200
    while not (found := list(tmp_path.glob("multirun/*/sparsity.density=0.1"))) or steps_done(found[0]) < 10:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    os.kill(holder(found[0]), signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "1 of 2 runs failed" in output
    assert output.count("trying again") == 1
    assert steps_done(found[0]) == STEPS
    assert "resumed     at step" in (found[0] / "console.log").read_text()


@pytest.mark.parametrize(
    ("setting", "told"),
    [("n_jobs=0", "at least one job has to run at a time"), ("retries=-1", "is out of range; write 0 or more")],
)
def test_settings_of_the_launcher_that_make_no_sense(
    smet_train: SmetTrain, quick: list[str], setting: str, told: str
) -> None:
    done = smet_train("-m", *quick, "seed=1,2", f"hydra.launcher.{setting}")
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
