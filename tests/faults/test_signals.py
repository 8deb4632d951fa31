"""Signals in every phase of a run, once and twice: saved at a step's end or ended at once, and exact afterwards."""

import copy
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smet_train.config.schema import Config
from smet_train.train.checkpoint import checkpoint_steps
from tests.faults.trials import difference, end, output, run, start, trace

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
STEPS = 13  # the last save is not one of those every 3 steps
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

# Phase -> a function that is entered in it, and in which of its calls the signal comes.
PHASES = {
    "start-up": ("smet_train.job:choose_device", 1),
    "tokenizer training": ("smet_train.data.tokenizer:_train", 1),
    "first evaluation": ("smet_train.train.loop:mean_loss", 1),
    "first step": ("smet_train.train.loop:try_step", 1),
    "accumulation": ("smet_train.train.step:token_loss", 4),
    "evaluation": ("smet_train.train.loop:mean_loss", 2),
    "topology update": ("smet_train.topology.updater:make_move", 9),
    "save": ("os:fsync", 8),
    "rotation": ("smet_train.train.files:remove_folder", 4),
    "last save": ("smet_train.train.loop:capture", 6),
    "last evaluation": ("smet_train.train.loop:mean_loss", 4),
    "end": ("smet_train.train.loop:report_memory", 1),
}
START_UP = ("start-up", "tokenizer training")


class Signal:
    """Sends ``number`` to the process itself, ``times`` times, when it comes to ``phase``."""

    def __init__(self, phase: str, number: int, times: int, sent: Path) -> None:
        self.phase = phase
        self.number = number
        self.times = times
        self.sent = sent

    def __call__(self) -> None:
        (module, _, name), which = PHASES[self.phase][0].partition(":"), PHASES[self.phase][1]
        place = importlib.import_module(module)
        real, calls = getattr(place, name), 0

        def enter(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == which:
                self.sent.write_text(str(time.monotonic()), encoding="utf-8")
                for _ in range(self.times):
                    os.kill(os.getpid(), self.number)
            return real(*arguments, **named)

        setattr(place, name, enter)


@pytest.fixture(scope="module")
def configure(quick_config: QuickConfig) -> Callable[[Path], Config]:
    def make(cache_dir: Path) -> Config:
        return quick_config(
            "model.layers=1",
            "model.intermediate_size=64",
            f"train.steps={STEPS}",
            "train.eval_interval=5",
            "checkpoint.interval=3",
            "checkpoint.keep=2",
            "topology.interval=4",
            f"data.cache_dir='{cache_dir}'",
        )

    return make


@pytest.fixture(scope="module")
def cached(configure: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration with a cache of its own."""
    return configure(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(cached: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that got no signal; what it has prepared is in the cache."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(cached, folder) == 0, output(folder)
    return folder


# One signal after the other from phase to phase, so that those tried in the short form have all of them.
TRIALS = [
    (phase, SIGNALS[(number + turn) % len(SIGNALS)])
    for number, phase in enumerate(PHASES)
    for turn in range(len(SIGNALS))
]


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_signal_in_any_phase(
    configure: Callable[[Path], Config], cached: Config, whole: Path, tmp_path: Path, campaign: Any, times: int
) -> None:
    name = "a signal saves and ends, resumed: exact" if times == 1 else "two signals end at once, resumed: exact"
    with campaign(name, unit="s from signal to exit") as tally:
        for phase, number in tally.some(TRIALS, few=4):
            folder, sent = tmp_path / f"{phase} {number.name}", tmp_path / "sent"
            config = configure(folder / "cache") if phase == "tokenizer training" else cached
            sent.unlink(missing_ok=True)
            status = run(config, folder, Signal(phase, number, times, sent))
            took_s = time.monotonic() - float(sent.read_text(encoding="utf-8"))
            wrong = ending(folder, status, number, phase in START_UP, times) or went_on(config, folder, whole)
            tally.note(wrong and f"{phase}, {number.name}: {wrong}", took_s)


def test_a_signal_at_any_moment(cached: Config, whole: Path, tmp_path: Path, campaign: Any) -> None:
    config = cached
    started_s = time.monotonic()
    assert run(config, tmp_path / "again") == 0
    longest_s = time.monotonic() - started_s
    with campaign("a signal saves and ends, resumed: exact", unit="s from signal to exit", part="any moment") as tally:
        for draw in tally.draws(few=2, every=12):
            folder, number = tmp_path / str(tally.tried), draw.choice(SIGNALS)
            process = start(config, folder)
            process.join(draw.random() * longest_s)
            sent_s = time.monotonic()
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)
            status = end(process)
            took_s = time.monotonic() - sent_s
            early = status == -number  # before training started
            tally.note(ending(folder, status, number, early, 1) or went_on(config, folder, whole), took_s)


def ending(folder: Path, status: int, number: signal.Signals, start_up: bool, times: int) -> str | None:
    """What is wrong with how a signalled process has ended, if anything."""
    expected = -number if start_up else 0 if times == 1 else 128 + number
    if status != expected:
        return f"it exits with {status}, not {expected}: {output(folder)}"
    if start_up or times == 2:
        return None
    events = trace(folder)
    step = max((event["step"] for event in events if event["event"] == "train"), default=0)
    saved = checkpoint_steps(folder / "checkpoints")[-1]
    if saved != step:
        return f"step {step} is the last, but {saved} is saved"
    last = events[-1]
    if last["event"] != "end" or last["reason"] not in (number.name, "finished"):
        return f"it ends with {last}"
    return None


def went_on(config: Config, folder: Path, whole: Path) -> str | None:
    """Type the same command again; what is wrong with its result, if anything."""
    if run(config, folder) != 0:
        return output(folder)
    return difference(folder, whole, STEPS)


def test_a_time_budget_ends_a_run_as_a_signal_does(cached: Config, whole: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(cached)
    config.train.max_hours = 1e-9
    assert run(config, tmp_path / "short") == 0, output(tmp_path / "short")
    last = trace(tmp_path / "short")[-1]
    assert (last["event"], last["reason"]) == ("end", "train.max_hours")
    assert went_on(cached, tmp_path / "short", whole) is None
