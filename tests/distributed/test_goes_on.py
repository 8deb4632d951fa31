"""A run goes on in another number of processes, and after a stop, exactly."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from smet_train import job
from smet_train.config.schema import Config
from smet_train.tracking.console import open_console
from smet_train.tracking.jsonl import read_events
from smet_train.train import step
from smet_train.train.processes import Processes
from tests.distributed.ranks import (
    FOUR,
    apart,
    die_in_step,
    end,
    in_double_precision,
    losses,
    patched,
    said,
    start,
    stop_after,
    train,
    weights,
)
from tests.faults.trials import digest

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def alone(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(quick_config(*FOUR), folder, 1, in_double_precision)
    return folder


@pytest.mark.parametrize("first", [1, 2, 4])
def test_in_any_other_number_of_processes(quick_config: QuickConfig, tmp_path: Path, alone: Path, first: int) -> None:
    whole, half = quick_config(*FOUR), quick_config(*FOUR, "train.steps=3")
    half.topology.stop_at = whole.topology.stop_at
    for second in (1, 2, 4):
        folder = tmp_path / str(second)
        train(half, folder, first, in_double_precision)
        saved = weights(folder, 3)
        train(whole, folder, second, in_double_precision)
        assert apart(weights(folder, 3), saved) == 0
        events = read_events(folder / "metrics.jsonl")
        assert [event["step"] for event in events if event["event"] == "train"] == [1, 2, 3, 4, 5, 6]
        assert [event["tokens"] for event in events if event["event"] == "train"][-1] == 6 * 4 * 32
        at = (alone / "checkpoints/step_00000006/state.json").read_text()
        here = (folder / "checkpoints/step_00000006/state.json").read_text()
        assert position(here) == position(at)


def tell_aloud() -> None:
    """What is told of a finished run goes where errors go too."""
    tell_finished = job.tell_finished

    def tell(console: Console, *given: Any) -> None:
        tell_finished(console if console.quiet else open_console(), *given)

    patched("smet_train.job.tell_finished", tell)


def test_a_finished_run_is_told_whatever_its_folder_is_called(quick_config: QuickConfig, tmp_path: Path) -> None:
    config, folder = quick_config("train.steps=1", "train.eval_interval=0"), tmp_path / "a[" / "b]"
    for times in (0, 1):
        train(config, folder, 2, tell_aloud)
        assert said(folder).count(f"This run is finished at step 1: {folder}\n") == times


def position(state: str) -> object:
    """Where in the data a checkpoint is."""
    return json.loads(state)["data"]


@pytest.fixture(scope="module")
def undisturbed(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of two processes that nothing has happened to."""

    @cache
    def make(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        train(quick_config(*overrides), folder, 2)
        return folder

    return make


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_bit_for_bit(
    quick_config: QuickConfig, undisturbed: Callable[..., Path], tmp_path: Path, asked: int
) -> None:
    settings = ("checkpoint.interval=0", "train.micro_batch_size=1")
    config = quick_config(*settings)
    folder = tmp_path / "stopped"
    statuses = end(start(config, folder, 2, of={asked: partial(stop_after, 2, signal.SIGUSR1)}))
    assert statuses == [0, 0], said(folder)
    [ended] = [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "end"]
    assert (ended["step"], ended["reason"]) == (3, "SIGUSR1")
    train(config, folder, 2)
    assert digest(folder, 6) == digest(undisturbed(*settings), 6)


def signal_as_they_ask(at_call: int) -> None:
    """SIGTERM to this process alone when all have just heard that none is asked to stop."""
    highest, calls = Processes.highest, 0

    def ask(processes: Processes, number: int) -> int:
        nonlocal calls
        heard = highest(processes, number)
        calls += 1
        if calls == at_call:
            os.kill(os.getpid(), signal.SIGTERM)
        return heard

    patched("smet_train.train.processes.Processes.highest", ask)
    patched("smet_train.train.loop._POLL_S", 60.0)  # as they wait for data they ask too


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_as_the_processes_ask_each_other_stops_them_a_step_later(
    quick_config: QuickConfig, tmp_path: Path, asked: int
) -> None:
    """Of the launcher's signal, which reaches each when it does, one process may know a moment before the others."""
    config = quick_config("checkpoint.interval=0", "train.micro_batch_size=1")
    folder = tmp_path / "stopped"
    statuses = end(start(config, folder, 2, of={asked: partial(signal_as_they_ask, 3)}))
    assert statuses == [0, 0], said(folder)
    [ended] = [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "end"]
    assert (ended["step"], ended["reason"]) == (3, "SIGTERM")


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=gmp", "topology.interval=2"),
        ("method=smet_rigl", "model.family=gpt2", "model.dropout=0.1"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_layers_that_shrink_and_probes_with_dropout_go_on_bit_for_bit(
    quick_config: QuickConfig, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """From a step after which the topology does not move, and from one after which it does."""
    config = quick_config("checkpoint.interval=0", "train.micro_batch_size=1", *overrides)
    train(config, tmp_path / "whole", 2)
    for before in (2, 3):
        folder = tmp_path / str(before)
        assert end(start(config, folder, 2, of={0: partial(stop_after, before, signal.SIGUSR1)})) == [0, 0], said(
            folder
        )
        train(config, folder, 2)
        assert digest(folder, 6) == digest(tmp_path / "whole", 6)


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_process_is_killed_the_others_say_so_and_end(
    quick_config: QuickConfig, undisturbed: Callable[..., Path], tmp_path: Path, dead: int
) -> None:
    config = quick_config("train.micro_batch_size=1")
    folder = tmp_path / "killed"
    processes = start(config, folder, 2, of={dead: partial(die_in_step, 5)})
    processes[dead].join()
    gone_s = time.monotonic()
    statuses = end(processes)
    assert time.monotonic() - gone_s < 30
    assert statuses[dead] == -signal.SIGKILL
    assert statuses[1 - dead] == 1
    assert re.search("smet-train: another process of this run has ended", said(folder))
    train(config, folder, 2)
    assert digest(folder, 6) == digest(undisturbed("train.micro_batch_size=1"), 6)


def spoil_loss(number: int) -> None:
    """A loss that is no number in this process at step ``number``."""
    forward_backward = step.forward_backward
    calls = iter(range(1, 1000))

    def spoiled(*arguments: object) -> float:
        loss = forward_backward(*arguments)  # type: ignore[arg-type]
        return float("nan") if next(calls) == number else loss

    patched("smet_train.train.loop.forward_backward", spoiled)


def test_a_step_that_is_bad_in_one_process_is_passed_over_in_all(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("train.micro_batch_size=1")
    assert end(start(config, tmp_path, 2, of={1: partial(spoil_loss, 4)})) == [0, 0], said(tmp_path)
    events = read_events(tmp_path / "metrics.jsonl")
    assert events[-1]["passed_over"] == 1
    incidents = read_events(tmp_path / "incidents.jsonl")
    assert [(incident["step"], incident["action"]) for incident in incidents] == [(4, "passed over")]


def test_too_many_bad_steps_send_all_back_to_the_checkpoint(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("train.micro_batch_size=1", "train.max_bad_steps=0")
    assert end(start(config, tmp_path, 2, of={1: partial(spoil_loss, 5)})) == [0, 0], said(tmp_path)
    events = read_events(tmp_path / "metrics.jsonl")
    assert events[-1]["rollbacks"] == 1
    assert len(losses(tmp_path)) == 6
    assert all(torch.isfinite(torch.tensor(losses(tmp_path))))
