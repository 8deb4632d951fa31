"""Forward and backward of one optimizer step over its micro-batches."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.models import plain_head, router_loss
from smet_train.train.loss import linear_cross_entropy
from smet_train.train.precision import compute_context, compute_dtype


def token_loss(model: nn.Module, windows_BT: Tensor, precision: str) -> Tensor:
    """Mean cross-entropy (nats a token) of predicting tokens 1..T of each window from those before; fp32 scalar.

    ``windows_BT`` holds B windows of T + 1 tokens on the model's device. It can be run backward once. A model of
    experts in training mode adds its routers' loss, as transformers does.
    """
    tokens, targets = windows_BT[:, :-1], windows_BT[:, 1:].flatten()
    parts = plain_head(model)
    with compute_context(windows_BT.device, precision):
        if parts is None:
            output = model(input_ids=tokens, use_cache=False)
            loss = F.cross_entropy(output.logits.flatten(0, 1).float(), targets)
            of_routers = router_loss(model, output) if model.training else None
            return loss if of_routers is None else loss + of_routers
        body, head = parts
        hidden_BTI = body(input_ids=tokens, use_cache=False).last_hidden_state
    return linear_cross_entropy(hidden_BTI.flatten(0, 1), head, targets, compute_dtype(precision))


class TokenLoss(nn.Module):
    """:func:`token_loss` as a module."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, windows_BT: Tensor) -> Tensor:
        """The loss of a micro-batch; it can be run backward once."""
        return token_loss(self.model, windows_BT, self.precision)

    def accumulating(self, more: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing is kept back where there is nobody to share with."""
        return nullcontext()

    def renew(self) -> None:
        """Nothing is derived from the shapes of parameters."""


class LossOf(Protocol):
    """The loss of a micro-batch, and how gradients add up over several."""

    def __call__(self, windows_BT: Tensor) -> Tensor:
        """As :func:`token_loss`."""

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch; ``more`` follow."""


def forward_backward(loss_of: LossOf, batches: Iterator[Tensor], micro_batches: int, device: torch.device) -> float:
    """Accumulate the gradient of the mean loss over ``micro_batches`` equal micro-batches; returns that loss."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number in range(micro_batches):
        with loss_of.accumulating(number + 1 < micro_batches):
            loss = loss_of(next(batches).to(device, non_blocking=True)) / micro_batches
            loss.backward()
        total += loss.detach()
    return float(total)
