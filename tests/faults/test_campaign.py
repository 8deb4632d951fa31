"""The table of faults counts right: a campaign with one failure fails, and says which trial and what differed."""

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smet_train.config.schema import Config
from tests.distributed import ranks
from tests.faults import trials
from tests.faults.conftest import Campaign, write_table
from tests.faults.trials import difference, digest


def test_a_failed_trial_fails_its_campaign() -> None:
    tally = Campaign("counting", every=False, unit="s")
    with pytest.raises(pytest.fail.Exception, match="nothing was tried"):
        tally.judge()
    for failure, cost in ((None, 1.0), ("lost", 3.0), (None, 2.0)):
        tally.note(failure, cost)
    assert tally.row() == {"name": "counting", "tried": 3, "passed": 2, "worst": 3.0, "unit": "s"}
    with pytest.raises(pytest.fail.Exception, match=r"counting: 1 of 3 failed:\ntrial 2: lost"):
        tally.judge()


def test_draws_are_the_same_each_time_and_differ_between_trials() -> None:
    first, again = ([draw.random() for draw in Campaign("draws", every=False).draws(3, 9)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert len(list(Campaign("draws", every=True).draws(3, 9))) == 9


def write_run(folder: Path, *, weight: float = 1.0, token: int = 5, loss: float = 2.0, time_s: float = 0.0) -> Path:
    """What is compared of a run, at step 1."""
    path = folder / "checkpoints" / "step_00000001"
    path.mkdir(parents=True)
    save_file({"weight": torch.tensor([weight])}, path / "model.safetensors")
    (path / "state.json").write_text(json.dumps({"position": {"token": token}, "config": time_s}))
    event = {"event": "train", "step": 1, "loss": loss, "time_s": time_s}
    (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    return folder


def test_a_difference_is_named(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole")
    later = write_run(tmp_path / "later", time_s=9.0)
    assert difference(later, whole, 1) is None
    assert digest(later, 1) == digest(whole, 1)
    other = write_run(tmp_path / "other", weight=1.5, token=6, loss=2.5)
    first, *rest = str(difference(other, whole, 1)).splitlines()
    assert first == f"{other} ends differently"
    assert rest[0].startswith("event 1: ")
    assert "2.5" in rest[0]
    assert rest[1].startswith("model.safetensors: ")
    assert rest[2:] == ["state.json position: {'token': 6}, not {'token': 5}"]
    assert digest(other, 1) != digest(whole, 1)


def test_the_table_is_written_where_there_is_no_folder_yet(tmp_path: Path) -> None:
    """As in a new clone."""
    row: dict[str, object] = {"name": "counting", "tried": 3, "passed": 2, "worst": None, "unit": ""}
    write_table(tmp_path / "outputs" / "faults.json", [row])
    assert json.loads((tmp_path / "outputs" / "faults.json").read_text())["campaigns"] == [row]


def hang(begun: Path) -> None:
    begun.touch()
    time.sleep(600)


def test_a_process_that_hangs_fails_the_test_and_says_where_it_was(
    quick_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_LONGEST_S", 0.1)
    names = ("one", "other")
    processes = [
        trials.start(quick_config(), tmp_path / name, partial(hang, tmp_path / f"{name} hangs")) for name in names
    ]
    while not all((tmp_path / f"{name} hangs").exists() for name in names):
        time.sleep(0.01)
    with pytest.raises(AssertionError, match=r"still running after 0\.1 s; its console.log says where"):
        ranks.end(processes)
    for process, name in zip(processes, names, strict=True):
        assert process.exitcode == -signal.SIGABRT
        assert "in hang" in trials.output(tmp_path / name)
