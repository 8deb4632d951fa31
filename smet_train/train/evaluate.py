"""Token-weighted loss on fixed windows, without gradients."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from smet_train.train.processes import ALONE, Processes
from smet_train.train.sharded_gradients import ShardedGradients
from smet_train.train.step import token_loss


class Interrupted(Exception):
    """An evaluation was given up halfway."""


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    windows_WT: Tensor,
    micro_batch_size: int,
    precision: str,
    give_up: Callable[[], object] = lambda: None,
    processes: Processes = ALONE,
    sharded: ShardedGradients | None = None,
) -> float:
    """Mean loss in nats over every predicted token of ``windows_WT`` (W windows of T + 1 tokens, any device).

    ``processes`` share the micro-batches, and all get the mean.

    Args:
        sharded: of a model that is split over ``processes``: they then compute in step.

    Raises:
        Interrupted: if ``give_up()``, asked between micro-batches, is true in any process.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, given_up = 0.0, False
    try:
        for chunk, weight in _shares(windows_WT.split(micro_batch_size), processes, in_step=sharded is not None):
            given_up = bool(give_up())
            if given_up if sharded is None else processes.highest(given_up):
                break
            windows = chunk.to(device)
            loss = token_loss(model, windows, precision) if sharded is None else sharded(windows)
            total += float(loss) * weight
    finally:
        model.train(was_training)
    total, gave_up = processes.sums(total, given_up)
    if gave_up:
        raise Interrupted
    return total / windows_WT.shape[0]  # windows are full, so windows weigh as their tokens do


def _shares(chunks: tuple[Tensor, ...], processes: Processes, *, in_step: bool) -> Iterator[tuple[Tensor, int]]:
    """This process's micro-batches, and how many windows each counts for; ``in_step``: as many in every process."""
    for chunk in chunks[processes.rank :: processes.size]:
        yield chunk, chunk.shape[0]
    if in_step and len(chunks) % processes.size > 0 and processes.rank >= len(chunks) % processes.size:
        yield chunks[0], 0


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
