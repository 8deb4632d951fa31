"""Token-weighted loss on fixed windows, without gradients."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from smet_train.train.processes import ALONE, Processes
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
) -> float:
    """Mean loss in nats over every predicted token of ``windows_WT`` (W windows of T + 1 tokens, any device).

    ``processes`` share the micro-batches, and all get the mean.

    Raises:
        Interrupted: if ``give_up()``, asked between micro-batches, is true in any process.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, given_up = 0.0, False
    try:
        for chunk in windows_WT.split(micro_batch_size)[processes.rank :: processes.size]:
            given_up = bool(give_up())
            if given_up:
                break
            total += float(token_loss(model, chunk.to(device), precision)) * chunk.shape[0]
    finally:
        model.train(was_training)
    total, gave_up = processes.sums(total, given_up)
    if gave_up:
        raise Interrupted
    return total / windows_WT.shape[0]  # windows are full, so windows weigh as their tokens do


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
