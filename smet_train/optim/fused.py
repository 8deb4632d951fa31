"""The optimizer's step inside the backward pass: a gradient lives until its parameter is updated, and no longer."""

from types import TracebackType

import torch
from torch import Tensor, nn

from smet_train.optim.smet_adamw import SmetAdamW


class FusedStep:
    """While it is entered, each backward pass updates every parameter as soon as its gradient is complete.

    One backward pass makes one step, so there can be no accumulation; and as no two gradients meet, none can be
    clipped by their global norm. What a step computes is bit for bit what ``optimizer.step`` after the pass does.

    From the first gradient on that is not finite, nothing more is updated.

    Args:
        look: look at the gradients' numbers; tensors that have none, as of a plan, need False.

    Attributes:
        half_done: whether the latest pass met such a gradient after it had updated some parameter.
    """

    def __init__(self, model: nn.Module, optimizer: SmetAdamW, *, look: bool = True) -> None:
        self._look = look
        self._optimizer = optimizer
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._norms: list[Tensor] = []
        self._updated = False
        self._broken = False

    @property
    def half_done(self) -> bool:
        """Whether a gradient turned out bad after other parameters were updated: the state is of no step then."""
        return self._broken and self._updated

    def __enter__(self) -> "FusedStep":
        self._norms = []
        self._updated = self._broken = False
        self._hooks = [p.register_post_accumulate_grad_hook(self._update) for p in self._parameters]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _update(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        norm = torch.linalg.vector_norm(parameter.grad)
        self._norms.append(norm)
        self._broken = self._broken or (self._look and not bool(torch.isfinite(norm)))
        if not self._broken:
            self._optimizer.step_one(parameter)
            self._updated = True
        parameter.grad = None

    def grad_norm(self) -> float:
        """Global norm of the gradients of the latest backward pass."""
        return float(torch.linalg.vector_norm(torch.stack(self._norms)))
