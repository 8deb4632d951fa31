"""Forward and backward of one optimizer step over its micro-batches."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.train.precision import compute_context


def token_loss(model: nn.Module, windows_BT: Tensor, precision: str) -> Tensor:
    """Mean cross-entropy (nats a token) of predicting tokens 1..T of each window from those before; fp32 scalar.

    ``windows_BT`` holds B windows of T + 1 tokens on the model's device.
    """
    with compute_context(windows_BT.device, precision):
        logits_BTV = model(input_ids=windows_BT[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), windows_BT[:, 1:].flatten())


def forward_backward(
    model: nn.Module, batches: Iterator[Tensor], micro_batches: int, device: torch.device, precision: str
) -> float:
    """Accumulate the gradient of the mean loss over ``micro_batches`` equal micro-batches; returns that loss."""
    total = torch.zeros((), device=device)
    for _ in range(micro_batches):
        loss = token_loss(model, next(batches).to(device, non_blocking=True), precision) / micro_batches
        loss.backward()
        total += loss.detach()
    return float(total)
