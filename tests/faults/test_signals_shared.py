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

pytestmark = pytest.mark.slow

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


def after_a_kill(folder: Path, statuses: list[int], asked: tuple[int, ...]) -> str | None:
    """What is wrong with how the other process has ended, if anything."""
    told, (killed,) = said(folder), asked
    if statuses[killed] != -signal.SIGKILL or statuses[1 - killed] not in (0, 1):
        return f"they exit with {statuses}"
    if statuses[1 - killed] == 1 and ("another process of this run has ended" not in told or "Traceback" in told):
        return "it does not say why"
    return None


def after_a_signal(folder: Path, statuses: list[int], _asked: tuple[int, ...]) -> str | None:
    """What is wrong with how the processes have ended, if anything."""
    last = trace(folder)[-1]
    if statuses != [0, 0] or last["event"] != "end" or last["reason"] not in ("SIGTERM", "finished"):
        return f"they exit with {statuses} and {last}"
    return None


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Config, Path]:
    """How the processes share the run, its configuration, and the folder of one that got no signal."""
    config, whole = quick_config(*SETTINGS, f"train.parallel={request.param}"), tmp_path_factory.mktemp("whole") / "run"
    train(config, whole, 2)
    return request.param, config, whole


@pytest.mark.parametrize("undisturbed", ["ddp", "fsdp"], indirect=True, scope="module")
@pytest.mark.parametrize(
    ("number", "whom", "wrong", "name"),
    [
        (
            signal.SIGTERM, [(0,), (1,), (0, 1)], after_a_signal,
            "a signal to processes that wait for each other saves and ends, resumed: exact",
        ),
        (
            signal.SIGKILL, [(0,), (1,)], after_a_kill,
            "SIGKILL of a process that others wait for ends all, resumed: exact",
        ),
    ],
    ids=["SIGTERM", "SIGKILL"],
)  # fmt: skip
def test_a_signal_between_any_two_exchanges(
    undisturbed: tuple[str, Config, Path],
    tmp_path: Path,
    campaign: Any,
    number: int,
    whom: list[tuple[int, ...]],
    wrong: Callable[[Path, list[int], tuple[int, ...]], str | None],
    name: str,
) -> None:
    parallel, config, whole = undisturbed
    with campaign(name, part=parallel) as tally:
        for draw in tally.draws(few=1, every=8):
            folder, exchange = tmp_path / str(tally.tried), draw.randint(1, N_EXCHANGES)
            asked = draw.choice(whom)
            hooks: dict[int, Hook] = {rank: partial(signal_after, exchange, number) for rank in asked}
            fault = wrong(folder, end(start(config, folder, 2, of=hooks)), asked)
            if fault is None:
                train(config, folder, 2)
                fault = difference(folder, whole, STEPS)
            tally.note(fault and f"{asked} after {exchange}: {fault}\n{said(folder)[-2000:]}")
