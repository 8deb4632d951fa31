"""Gradients averaged over the processes of a run, by torch's DistributedDataParallel.

A parameter holds active values only, so its buckets do too; nothing else is sent: no buffer and no index.
"""

import gc
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # torch exports it without saying so
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from smet_train.train.processes import Processes
from smet_train.train.step import TokenLoss


class SharedGradients:
    """The loss of a micro-batch, whose backward pass averages all gradients over the processes.

    Args:
        model: the same in all processes, which :func:`smet_train.train.agreement.check_same_start` has seen to.
    """

    def __init__(self, processes: Processes, model: nn.Module, precision: str) -> None:
        self._processes = processes
        self._loss = TokenLoss(model, precision)
        self._parallel = self._wrapped()

    def renew(self) -> None:
        """Make the buckets anew, after parameters have got another shape."""
        del self._parallel  # it keeps autograd's notes of the old shapes
        gc.collect()
        self._parallel = self._wrapped()

    def _wrapped(self) -> DistributedDataParallel:
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers, and has no other name yet for not sending buffers at the start.
            warnings.simplefilter("ignore", FutureWarning)
            parallel = DistributedDataParallel(
                self._loss, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )
        parallel.register_comm_hook(self._processes, _average_and_count)
        return parallel

    def __call__(self, windows_BT: Tensor) -> Tensor:
        """As :func:`smet_train.train.step.token_loss`."""
        loss: Tensor = self._parallel(windows_BT)
        return loss

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Inside, forward and backward keep their gradients to themselves if ``more`` micro-batches follow."""
        return self._parallel.no_sync() if more else nullcontext()


def _average_and_count(processes: Processes, bucket: GradBucket) -> Future[torch.Tensor]:
    processes.sent_bytes += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is the group of all processes
