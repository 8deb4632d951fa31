"""Token-weighted loss on fixed windows, without gradients."""

import math

import torch
from torch import Tensor, nn

from smet_train.train.step import token_loss


@torch.no_grad()
def mean_loss(model: nn.Module, windows_WT: Tensor, micro_batch_size: int, precision: str) -> float:
    """Mean loss in nats over every predicted token of ``windows_WT`` (W windows of T + 1 tokens, any device)."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for chunk in windows_WT.split(micro_batch_size):
        total += float(token_loss(model, chunk.to(device), precision)) * chunk.shape[0]
    model.train(was_training)
    return total / windows_WT.shape[0]  # windows are full, so windows weigh as their tokens do


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
