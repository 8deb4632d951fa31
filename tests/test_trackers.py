"""Whole runs with trackers: what they hold is what metrics.jsonl holds, and nothing about them stops a run."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smet_train.config.schema import Config
from smet_train.job import run_training
from smet_train.trackers import sweep_name
from smet_train.tracking.jsonl import read_events
from smet_train.tracking.wandb_sink import abandon
from smet_train.train import loop
from tests import forked
from tests.tracking.fake_wandb import FakeRun, FakeWandb
from tests.tracking.read_back import expected_points, single, tensorboard_points, wandb_points, wandb_rows

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
BOTH = ("tracking.wandb=offline", "tracking.tensorboard=true", "tracking.probe_windows=2")


class Crash(Exception):
    """Stands for whatever ends a process."""


def train(config: Config, folder: Path) -> str:
    """Run to the end; returns what was printed."""
    console = Console(width=200, record=True, file=io.StringIO(), highlight=False)
    assert run_training(config, folder, console) == 0
    return console.export_text()


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the loop die after a step, once."""

    def arm(step: int) -> None:
        report_step = loop.report_step

        def report_or_die(run: Any, *facts: Any) -> None:
            report_step(run, *facts)
            if run.state.step == step:
                monkeypatch.setattr(loop, "report_step", report_step)
                raise Crash

        monkeypatch.setattr(loop, "report_step", report_or_die)

    return arm


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    stand_in = FakeWandb(server={})
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def wandb_file(folder: Path) -> Path:
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return file


def test_both_hold_what_metrics_jsonl_holds_also_after_a_crash(
    quick_config: QuickConfig, tmp_path: Path, crash_at: Callable[[int], None]
) -> None:
    """The crash comes two steps after the newest checkpoint, so that steps 3 and 4 are trained twice."""
    config = quick_config(*BOTH, "checkpoint.interval=3")
    crash_at(5)
    with pytest.raises(Crash):
        train(config, tmp_path)
    printed = train(config, tmp_path)
    abandon()
    expected = expected_points(tmp_path)
    assert [step for step, _ in expected["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert {"eval/perplexity", "topology/grown", "spike/train_spike", "spike/probe_peak", "memory/rss_bytes"} < set(
        expected
    )
    assert tensorboard_points(tmp_path / "tensorboard") == single(expected)
    assert wandb_points(wandb_rows(wandb_file(tmp_path))) == expected
    assert f"tensorboard tensorboard --logdir {tmp_path}/tensorboard\n" in printed
    assert f"wandb       wandb sync {tmp_path}/wandb/offline-run-" in printed


def test_both_hold_what_metrics_jsonl_holds_after_a_kill(quick: list[str], tmp_path: Path) -> None:
    settings = [*quick, *BOTH, "train.steps=24", "train.eval_interval=8", "checkpoint.interval=8"]
    command = [sys.executable, "-m", "smet_train", *settings, f"hydra.run.dir={tmp_path}"]
    metrics = tmp_path / "metrics.jsonl"
    process = forked.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 200
    while time.monotonic() < deadline_s and process.poll() is None:
        text = metrics.read_text() if metrics.is_file() else ""
        if '"event": "train", "step": 11,' in text:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert max(event["step"] for event in read_events(metrics) if event["event"] == "train") >= 11
    forked.run(command, check=True, capture_output=True)
    expected = expected_points(tmp_path)
    assert [step for step, _ in expected["train/loss"]] == list(range(1, 25))
    assert tensorboard_points(tmp_path / "tensorboard") == single(expected)
    newest = max(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert wandb_points(wandb_rows(newest)) == expected


def test_trackers_change_nothing_of_the_run(quick_config: QuickConfig, tmp_path: Path, fake: FakeWandb) -> None:
    train(quick_config(), tmp_path / "without")
    train(quick_config(*BOTH[:2]), tmp_path / "with")
    weights = "checkpoints/step_00000006/model.safetensors"
    assert (tmp_path / "with" / weights).read_bytes() == (tmp_path / "without" / weights).read_bytes()
    assert len(fake.runs) == 1


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("where", ["init", "log", "finish", "Table", "Artifact"])
def test_a_wandb_that_breaks_never_stops_a_run(
    quick_config: QuickConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(where)

    monkeypatch.setattr(FakeRun if where in ("log", "finish") else FakeWandb, where, breaks)
    train(quick_config("tracking.wandb=offline", "train.steps=3"), tmp_path)
    assert read_events(tmp_path / "metrics.jsonl")[-1]["reason"] == "finished"
    (told,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert told.startswith("tracking.wandb: it ")
    assert where in told


def test_a_wandb_that_is_not_there_is_a_warning(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(quick_config("tracking.wandb=online", "train.steps=1"), tmp_path)
    assert "tracking.wandb: it can't be opened (ModuleNotFoundError" in caplog.text


def test_a_tensorboard_that_can_not_write_is_a_warning(
    quick_config: QuickConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    train(quick_config("tracking.tensorboard=true", "train.steps=1"), tmp_path)
    assert "tracking.tensorboard: it can't be opened" in caplog.text


def test_a_finished_run_gives_its_report_and_one_that_ends_otherwise_does_not(
    quick_config: QuickConfig, tmp_path: Path, fake: FakeWandb, crash_at: Callable[[int], None]
) -> None:
    config = quick_config("tracking.wandb=offline", "tracking.wandb_tags=[a,b]", "tracking.wandb_group=g")
    crash_at(5)
    with pytest.raises(Crash):
        train(config, tmp_path)
    train(config, tmp_path)
    first, second = fake.runs
    assert (first.artifacts, first.finished_with) == ([], [1])
    (artifact,) = second.artifacts
    assert artifact.files == ["report.html", "config.yaml", "metrics.jsonl"]
    assert "spike" in (tmp_path / "report.html").read_text()
    assert second.finished_with == [None]
    assert fake.begun[0]["id"] == fake.begun[1]["id"]
    assert (fake.begun[1]["tags"], fake.begun[1]["group"]) == (["a", "b"], "g")
    assert fake.begun[1]["config"]["train"]["steps"] == 6


def test_a_longer_run_goes_on_under_its_id(quick_config: QuickConfig, tmp_path: Path, fake: FakeWandb) -> None:
    for steps in (1, 2):
        train(quick_config("tracking.wandb=offline", f"train.steps={steps}"), tmp_path)
    assert fake.begun[0]["id"] == fake.begun[1]["id"]


@pytest.mark.parametrize("lr", [1e-3, 2e-3])
def test_a_run_killed_before_its_first_checkpoint_starts_over_as_the_same_wandb_run_if_it_is_the_same(
    quick_config: QuickConfig, tmp_path: Path, fake: FakeWandb, crash_at: Callable[[int], None], lr: float
) -> None:
    crash_at(1)
    with pytest.raises(Crash):
        train(quick_config("tracking.wandb=offline", "train.steps=2", "optimizer.lr=1e-3"), tmp_path)
    train(quick_config("tracking.wandb=offline", "train.steps=2", f"optimizer.lr={lr}"), tmp_path)
    assert (fake.begun[0]["id"] == fake.begun[1]["id"]) == (lr == 1e-3)


def test_the_runs_of_a_sweep_are_a_group_by_its_folder(
    quick_config: QuickConfig, tmp_path: Path, fake: FakeWandb
) -> None:
    alone, job = tmp_path / "outputs" / "alone", tmp_path / "demo-9a8b7c6d" / "sparsity.density=0.1"
    for folder in (alone, job):
        folder.mkdir(parents=True)
    (job.parent / "multirun.yaml").touch()
    assert sweep_name(alone) is None
    assert sweep_name(job) == "demo-9a8b7c6d"
    by_another_sweeper = tmp_path / "search" / "0"
    by_another_sweeper.mkdir(parents=True)
    (by_another_sweeper / "console.log").touch()
    assert sweep_name(by_another_sweeper) == "search"
    train(quick_config("tracking.wandb=offline", "train.steps=1"), job)
    assert fake.begun[0]["group"] == "demo-9a8b7c6d"
    assert os.path.basename(str(fake.begun[0]["dir"])) == fake.begun[0]["name"] == "sparsity.density=0.1"
