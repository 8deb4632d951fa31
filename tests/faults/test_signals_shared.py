"""SIGTERM and SIGKILL to one of several processes, or to all, between any two things that they tell each other."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smet_train.config.schema import Config
from smet_train.train.processes import Processes
from smet_train.train.signals import StopRequest
from tests.distributed.ranks import end, patched, said, start, train
from tests.faults.trials import Hook, difference, trace

QuickConfig = Callable[..., Config]
STEPS = 7  # the last save is not one of those every 2 steps
EXCHANGES = ("told", "each", "highest", "sums", "scattered", "gathered")
N_EXCHANGES = 45  # of a run, about
# With evaluations, topology updates and saves between the steps.
SETTINGS = (
    "model.layers=1",
    "model.intermediate_size=64",
    f"train.steps={STEPS}",
    "train.micro_batch_size=1",
    "train.eval_interval=3",
    "topology.interval=2",
    "checkpoint.interval=2",
    "checkpoint.asynchronous=true",
)


def signal_after(exchange: int, number: int = signal.SIGTERM) -> None:
    """A signal to this process when it has heard the ``exchange``-th of what is told since it began to train."""
    told = -1  # until then
    arm = StopRequest.arm

    def armed(stop: StopRequest) -> None:
        nonlocal told
        arm(stop)
        told = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def hear(*given: Any) -> Any:
            nonlocal told
            heard = real(*given)
            told += told >= 0
            if told == exchange:
                os.kill(os.getpid(), number)
            return heard

        return hear

    patched("smet_train.train.signals.StopRequest.arm", armed)
    for name in EXCHANGES:
        patched(f"smet_train.train.processes.Processes.{name}", counted(getattr(Processes, name)))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_signal_between_any_two_exchanges(
    quick_config: QuickConfig, tmp_path: Path, campaign: Any, parallel: str
) -> None:
    config, whole = quick_config(*SETTINGS, f"train.parallel={parallel}"), tmp_path / "whole"
    train(config, whole, 2)
    name = "a signal to processes that wait for each other saves and ends, resumed: exact"
    with campaign(name, part=parallel) as tally:
        for draw in tally.draws(few=1, every=8):
            folder, exchange = tmp_path / str(tally.tried), draw.randint(1, N_EXCHANGES)
            asked: tuple[int, ...] = draw.choice([(0,), (1,), (0, 1)])
            hooks: dict[int, Hook] = {rank: partial(signal_after, exchange) for rank in asked}
            fault = wrong(config, folder, whole, end(start(config, folder, 2, of=hooks)))
            tally.note(fault and f"{asked} after {exchange}: {fault}\n{said(folder)[-2000:]}")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_is_killed_between_any_two_exchanges(
    quick_config: QuickConfig, tmp_path: Path, campaign: Any, parallel: str
) -> None:
    config, whole = quick_config(*SETTINGS, f"train.parallel={parallel}"), tmp_path / "whole"
    train(config, whole, 2)
    name = "SIGKILL of a process that others wait for ends all, resumed: exact"
    with campaign(name, part=parallel) as tally:
        for draw in tally.draws(few=1, every=8):
            folder, exchange, killed = tmp_path / str(tally.tried), draw.randint(1, N_EXCHANGES), draw.randint(0, 1)
            hook = partial(signal_after, exchange, signal.SIGKILL)
            fault = not_ended(config, folder, whole, end(start(config, folder, 2, of={killed: hook})), killed)
            tally.note(fault and f"{killed} after {exchange}: {fault}\n{said(folder)[-2000:]}")


def not_ended(config: Config, folder: Path, whole: Path, statuses: list[int], killed: int) -> str | None:
    """What is wrong with how the other process has ended and what became of the run then, if anything."""
    told = said(folder)
    if statuses[killed] != -signal.SIGKILL or statuses[1 - killed] not in (0, 1):
        return f"they exit with {statuses}"
    if statuses[1 - killed] == 1 and ("another process of this run has ended" not in told or "Traceback" in told):
        return "it does not say why"
    train(config, folder, 2)
    return difference(folder, whole, STEPS)


def wrong(config: Config, folder: Path, whole: Path, statuses: list[int]) -> str | None:
    """What is wrong with how the processes have ended and what became of the run then, if anything."""
    last = trace(folder)[-1]
    if statuses != [0, 0] or last["event"] != "end" or last["reason"] not in ("SIGTERM", "finished"):
        return f"they exit with {statuses} and {last}"
    train(config, folder, 2)
    return difference(folder, whole, STEPS)
