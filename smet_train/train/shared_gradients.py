"""Gradients averaged over the processes of a run, by torch's DistributedDataParallel.

A parameter holds active values only, so its buckets do too; nothing else is sent: no buffer and no index.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smet_train.train.processes import Processes
from smet_train.train.step import TokenLoss


class SharedGradients:
    """The loss of a micro-batch, whose backward pass averages all gradients over the processes.

    What is sent is counted beside it, not by a hook: a hook in Python is let go of by the thread that sends, which then
    waits for the interpreter; where another process has died, that is held by who waits for this thread.

    Args:
        model: the same in all processes, which :func:`smet_train.train.agreement.check_same_start` has seen to.
    """

    def __init__(self, processes: Processes, model: nn.Module, precision: str) -> None:
        self._processes = processes
        self._loss = TokenLoss(model, precision)
        self._wrap()

    def renew(self) -> None:
        """Make the buckets anew, after parameters have got another shape."""
        del self._parallel  # it keeps autograd's notes of the old shapes
        gc.collect()
        self._wrap()

    def _wrap(self) -> None:
        self._parallel = self._wrapped()
        trained = (parameter for parameter in self._parallel.parameters() if parameter.requires_grad)
        self._gradient_bytes = sum(parameter.nbytes for parameter in trained)

    def _wrapped(self) -> DistributedDataParallel:
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers, and has no other name yet for not sending buffers at the start.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self._loss, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )

    def __call__(self, windows_BT: Tensor) -> Tensor:
        """As :func:`smet_train.train.step.token_loss`."""
        loss: Tensor = self._parallel(windows_BT)
        return loss

    @contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Inside, forward and backward keep their gradients to themselves if ``more`` micro-batches follow."""
        if more:
            with self._parallel.no_sync():
                yield
            return
        yield
        self._processes.sent_bytes += self._gradient_bytes
