"""One run in several forked processes on gloo."""

import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from smet_train.config.schema import Config
from smet_train.tracking.jsonl import read_events
from smet_train.train import loop
from smet_train.train.checkpoint import load_checkpoint
from smet_train.train.processes import Processes, joined
from smet_train.train.run import Run
from tests.faults import trials
from tests.faults.trials import Hook
from tests.forked import context

# Five topology updates with steps before and after them, in which regrown values come to full size.
LONG_STEPS = 18
LONG = (
    f"train.steps={LONG_STEPS}",
    "topology.interval=3",
    "optimizer.regrow_warmup_steps=6",
    "train.eval_interval=10",
    "checkpoint.interval=0",
)
FOUR = ("train.batch_size=4", "train.micro_batch_size=1")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def told_of_itself(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process, in its environment."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def become(rank: int, size: int, port: int) -> None:
    """A process that torchrun has started."""
    os.environ |= told_of_itself(rank, size, port)


def start(
    config: Config, folder: Path, size: int, *hooks: Hook, of: dict[int, Hook] | None = None
) -> list[BaseProcess]:
    """``size`` processes of one run; ``of`` has hooks of single ones."""
    port = free_port()
    own = of or {}
    return [
        trials.start(config, folder, partial(become, rank, size, port), *hooks, *([own[rank]] if rank in own else []))
        for rank in range(size)
    ]


def end(processes: Sequence[BaseProcess]) -> list[int]:
    """The exit status of each; if one hangs, they all write down where they are."""
    try:
        return [trials.end(process) for process in processes]
    except AssertionError:
        for process in processes:
            trials.abort(process)
        raise


def train(config: Config, folder: Path, size: int, *hooks: Hook) -> None:
    """Train with ``size`` processes, as one of none if that is 1; it must end well."""
    statuses = [trials.run(config, folder, *hooks)] if size == 1 else end(start(config, folder, size, *hooks))
    assert not any(statuses), said(folder)


def each(size: int, check: Callable[[Processes], None]) -> None:
    """``check``, a function of a module, in ``size`` processes that know each other; it must end well in all."""
    port = free_port()
    children = [context.Process(target=_joined, args=(rank, size, port, check)) for rank in range(size)]
    for child in children:
        child.start()
    assert not any(end(children))


def _joined(rank: int, size: int, port: int, check: Callable[[Processes], None]) -> None:
    become(rank, size, port)
    torch.set_num_threads(1)
    with joined("cpu", size, 1) as processes:
        check(processes)


def said(folder: Path) -> str:
    return (folder / "console.log").read_text(encoding="utf-8")


def in_double_precision() -> None:
    """Hold all parameters in fp64, of which no setting knows."""

    def hold(model: Any, _precision: str) -> None:
        model.double()

    patched("smet_train.sparse_model.hold_parameters", hold)


def losses(folder: Path, kind: str = "train") -> list[float]:
    return [event["loss"] for event in read_events(folder / "metrics.jsonl") if event["event"] == kind]


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    """Values, index and dense parameters of a checkpoint."""
    return dict(load_checkpoint(folder / "checkpoints" / f"step_{step:08d}").tensors["model"])


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models' numbers; infinite if their topologies differ."""
    assert one.keys() == other.keys()
    same = all(torch.equal(one[name], other[name]) for name in one if not one[name].is_floating_point())
    numbers = [name for name in one if one[name].is_floating_point()]
    return max(float((one[name] - other[name]).abs().max()) for name in numbers) if same else torch.inf


def patched(name: str, instead: Any) -> None:
    """Replace ``name`` for the rest of a process."""
    mock.patch(name, instead).start()


def stop_after(step: int, number: int) -> None:
    """A signal to this process alone at the start of the step after ``step``."""
    set_learning_rate = loop.set_learning_rate

    def stop(run: Run) -> float:
        if run.state.step == step:
            os.kill(os.getpid(), number)
        return set_learning_rate(run)

    patched("smet_train.train.loop.set_learning_rate", stop)


def die_in_step(step: int) -> None:
    """SIGKILL to this process in the backward pass of ``step``."""
    compute_gradients = loop.compute_gradients

    def die(run: Run) -> tuple[float, float]:
        if run.state.step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute_gradients(run)

    patched("smet_train.train.loop.compute_gradients", die)
