"""Forward and backward of one optimizer step over its micro-batches."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.models import plain_head
from smet_train.train.loss import linear_cross_entropy
from smet_train.train.precision import compute_context, compute_dtype


def token_loss(model: nn.Module, windows_BT: Tensor, precision: str) -> Tensor:
    """Mean cross-entropy (nats a token) of predicting tokens 1..T of each window from those before; fp32 scalar.

    ``windows_BT`` holds B windows of T + 1 tokens on the model's device. It can be run backward once.
    """
    tokens, targets = windows_BT[:, :-1], windows_BT[:, 1:].flatten()
    parts = plain_head(model)
    with compute_context(windows_BT.device, precision):
        if parts is None:
            logits_BTV = model(input_ids=tokens, use_cache=False).logits
            return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets)
        body, head = parts
        hidden_BTI = body(input_ids=tokens, use_cache=False).last_hidden_state
    return linear_cross_entropy(hidden_BTI.flatten(0, 1), head, targets, compute_dtype(precision))


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
