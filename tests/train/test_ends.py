"""How a run ends by an error: what is saved, what is written down, what is said."""

import errno
import io
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from smet_train.config.schema import Config
from smet_train.data.stream import TokenWindows
from smet_train.errors import CheckpointError, DataError, SmetError, TrainingError
from smet_train.job import run_training
from smet_train.tracking.jsonl import JsonlSink, read_events
from smet_train.train import evaluate, files, loop, step
from smet_train.train.checkpoint import checkpoint_steps
from smet_train.train.run import Run
from tests.faults import trials
from tests.faults.trials import trace
from tests.tracking.full_file import FullFile

QuickConfig = Callable[..., Config]


class Full(files.Disk):
    def create(self, path: Path) -> Any:
        raise OSError(errno.ENOSPC, f"No space left on device: {path}")


def train(config: Config, folder: Path) -> str:
    console = Console(width=120, record=True, file=io.StringIO(), highlight=False)
    assert run_training(config, folder, console) == 0
    return console.export_text()


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "step_00000006" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_source_that_fails_leaves_the_steps_until_then_saved(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    config = quick_config("checkpoint.interval=0", f"data.prefetch_batches={prefetch}", "method=smet_rigl")
    train(config, tmp_path / "whole")
    real, calls = TokenWindows.__next__, 0

    def fail_later(windows: TokenWindows) -> list[int]:
        nonlocal calls
        calls += 1
        if calls > 4 * 4 + 2:  # in the middle of the fifth step's batch of four windows
            raise DataError("the connection is lost", exit_status=1)
        return real(windows)

    with monkeypatch.context() as patch:
        patch.setattr(TokenWindows, "__next__", fail_later)
        with pytest.raises(DataError, match="the connection is lost"):
            run_training(config, tmp_path / "broken")
    assert checkpoint_steps(tmp_path / "broken" / "checkpoints") == [4]
    last = read_events(tmp_path / "broken" / "metrics.jsonl")[-1]
    assert (last["event"], last["step"], last["reason"]) == ("end", 4, "DataError: the connection is lost")
    train(config, tmp_path / "broken")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_a_source_that_fails_is_told_though_the_save_then_fails_too(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = TokenWindows.__next__, 0

    def fail_later(windows: TokenWindows) -> list[int]:
        nonlocal calls
        calls += 1
        if calls > 4 * 4 + 2:
            monkeypatch.setattr(files, "disk", Full())
            raise DataError("café\udce9.txt line 7: it is not JSON")  # a name that is not UTF-8
        return real(windows)

    monkeypatch.setattr(TokenWindows, "__next__", fail_later)
    config = quick_config("checkpoint.interval=0", "data.prefetch_batches=0")
    with pytest.raises(DataError, match="line 7: it is not JSON"):
        run_training(config, tmp_path)
    assert "the checkpoint of step 4 could not be written" in caplog.text
    last = read_events(tmp_path / "metrics.jsonl")[-1]
    assert (last["event"], last["reason"]) == ("end", "DataError: café\udce9.txt line 7: it is not JSON")


def test_a_disk_that_is_full_from_the_beginning_is_one_message(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "disk", Full())
    with pytest.raises(CheckpointError, match=r"the tokenizer can't be kept in .*No space left on device") as told:
        run_training(quick_config(), tmp_path)
    assert told.value.exit_status == 1


def test_a_metrics_file_that_can_not_be_flushed_ends_the_run_in_one_message(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a network's disk tells only then that it is full."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SmetError, match=r"metrics.jsonl can't be written: .*quota exceeded; make room") as told:
        run_training(quick_config(), tmp_path)
    assert told.value.exit_status == 1


def test_with_warn_a_disk_that_is_full_for_a_while_costs_its_checkpoints_alone(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = quick_config("checkpoint.interval=2", "checkpoint.on_error=warn", "train.eval_interval=0")
    train(config, tmp_path / "whole")
    real = JsonlSink.emit
    disks: list[FullFile] = []

    def emit(sink: JsonlSink, event: dict[str, Any]) -> None:
        if (event["event"], event.get("step")) == ("train", 3):
            disks.append(FullFile(sink._file, 7))
            sink._file = disks[0]  # type: ignore[assignment]
            monkeypatch.setattr(files, "disk", Full())
        if (event["event"], event.get("step")) == ("train", 5):
            disks[0].room_bytes = 10**6
            monkeypatch.setattr(files, "disk", files.Disk())
        real(sink, event)

    monkeypatch.setattr(JsonlSink, "emit", emit)
    train(config, tmp_path / "full")
    assert checkpoint_steps(tmp_path / "full" / "checkpoints") == [2, 6]
    assert trace(tmp_path / "full") == trace(tmp_path / "whole")
    assert weights(tmp_path / "full") == weights(tmp_path / "whole")
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.partition(": ")[0].rpartition("/")[2] for message in told] == [
        "metrics.jsonl can't be written",
        "step_00000004",
        "metrics.jsonl is written again, nothing is missing from it",
    ]


def test_with_warn_a_save_that_failed_when_it_was_due_is_made_at_the_end_and_reported_once(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_config("checkpoint.interval=3", "checkpoint.on_error=warn")
    train(config, tmp_path / "whole")
    begin, finish = loop.catch_up, loop.finish

    def full(run: Run) -> None:
        monkeypatch.setattr(files, "disk", Full())
        begin(run)

    def with_room(run: Run) -> str:
        monkeypatch.setattr(files, "disk", files.Disk())
        return finish(run)

    monkeypatch.setattr(loop, "catch_up", full)
    monkeypatch.setattr(loop, "finish", with_room)
    train(config, tmp_path / "full")
    assert checkpoint_steps(tmp_path / "full" / "checkpoints") == [6]
    assert trace(tmp_path / "full") == trace(tmp_path / "whole")


@pytest.mark.parametrize("on_error", ["warn", "stop"])
def test_an_incident_that_can_not_be_written_down(
    quick_config: QuickConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on_error: str,
) -> None:
    real, calls = step.forward_backward, iter(range(10))
    monkeypatch.setattr(loop, "forward_backward", lambda *given: math.nan if next(calls) == 2 else real(*given))
    (tmp_path / "incidents.jsonl").mkdir()
    config = quick_config(f"checkpoint.on_error={on_error}")
    told = r"incidents.jsonl can't be written: .*Is a directory"
    if on_error == "stop":
        with pytest.raises(SmetError, match=told):
            train(config, tmp_path)
    else:
        train(config, tmp_path)
        assert re.search(told, caplog.text)


def test_a_metrics_file_that_can_not_be_written_ends_the_run_in_one_message(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_config()
    train(config, tmp_path / "whole")
    real = JsonlSink.emit

    def emit(sink: JsonlSink, event: dict[str, Any]) -> None:
        if event.get("step") == 5:
            sink._file = FullFile(sink._file, 20)  # type: ignore[assignment]
        real(sink, event)

    with monkeypatch.context() as patch:
        patch.setattr(JsonlSink, "emit", emit)
        with pytest.raises(SmetError, match=r"metrics.jsonl can't be written: .*No space left.*make room") as caught:
            run_training(config, tmp_path / "full")
    assert caught.value.exit_status == 1
    train(config, tmp_path / "full")
    assert weights(tmp_path / "full") == weights(tmp_path / "whole")
    steps = [event["step"] for event in read_events(tmp_path / "full" / "metrics.jsonl") if event["event"] == "train"]
    assert steps == list(range(1, 7))


def test_a_state_that_can_not_be_kept_is_told(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(files.Disk):
        def write(self, path: Path, parts: Iterator[memoryview | bytes]) -> None:
            if "inspect" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(path, parts)

    monkeypatch.setattr(files, "disk", Full())
    monkeypatch.setattr(loop, "forward_backward", lambda *_: float("nan"))
    with pytest.raises(TrainingError, match=r"The bad state could not be kept: .*No space left on device"):
        run_training(quick_config("train.max_bad_steps=0"), tmp_path)


def test_deterministic_lets_torch_refuse_what_differs(quick_config: QuickConfig, tmp_path: Path) -> None:
    try:
        train(quick_config("train.deterministic=true", "train.steps=2"), tmp_path)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


EVALUATED = ("train.steps=6", "train.eval_interval=2", "train.micro_batch_size=4")


def run_out(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The evaluation number ``at`` of a start finds no memory."""
    real, calls = evaluate.mean_loss, 0

    def mean_loss(*arguments: Any, **named: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == at:
            raise MemoryError
        return real(*arguments, **named)

    monkeypatch.setattr(loop, "mean_loss", mean_loss)


@pytest.mark.parametrize("interval", [0, 4, 100])
def test_an_evaluation_that_runs_out_of_memory_costs_no_step(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    config = quick_config(*EVALUATED, f"checkpoint.interval={interval}")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        run_out(patch, 3)
        with pytest.raises(MemoryError):
            run_training(config, tmp_path / "run", Console(file=io.StringIO()))
    assert checkpoint_steps(tmp_path / "run" / "checkpoints")[-1] == 4
    train(config, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert trace(tmp_path / "run") == trace(tmp_path / "whole")


def test_at_step_0_there_is_nothing_to_save(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, 1)
    with pytest.raises(MemoryError):
        run_training(quick_config(*EVALUATED), tmp_path, Console(file=io.StringIO()))
    assert not checkpoint_steps(tmp_path / "checkpoints")


def killed_in_the_second_evaluation() -> None:
    """As the system does with the process that needs most memory."""
    real, calls = evaluate.mean_loss, 0

    def mean_loss(*arguments: Any, **named: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    vars(loop)["mean_loss"] = mean_loss


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_the_first_evaluation_after_a_step_finds_the_step_saved(
    quick_config: QuickConfig, tmp_path: Path, asynchronous: str
) -> None:
    """Those after it need no more memory, and are not saved before."""
    config = quick_config(*EVALUATED, "checkpoint.interval=5", f"checkpoint.asynchronous={asynchronous}")
    train(config, tmp_path / "whole")
    assert checkpoint_steps(tmp_path / "whole" / "checkpoints") == [2, 5, 6]
    told = [
        event["step"] for event in read_events(tmp_path / "whole" / "metrics.jsonl") if event["event"] == "checkpoint"
    ]
    assert told == [5, 6]
    assert trials.run(config, tmp_path / "run", killed_in_the_second_evaluation) == -signal.SIGKILL
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2]
    train(config, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert trace(tmp_path / "run") == trace(tmp_path / "whole")


def test_what_is_due_after_one_step_is_saved_before_it_is_evaluated(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(*EVALUATED, "checkpoint.interval=2"), tmp_path)
    events = [event for event in read_events(tmp_path / "metrics.jsonl") if event["event"] in ("checkpoint", "eval")]
    assert [(event["event"], event["step"]) for event in events] == [
        ("eval", 0), *((kind, step) for step in (2, 4, 6) for kind in ("checkpoint", "eval"))
    ]  # fmt: skip
