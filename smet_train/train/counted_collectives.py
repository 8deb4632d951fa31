"""The collective operations of ``fully_shard``, whose payload is counted.

They derive from what torch keeps for itself, so only a sharded run imports them.
"""

from typing import Any

from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from smet_train.train.processes import Processes


class CountedGather(DefaultAllGather):
    """Gathers parameters."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *others: Any, **named: Any) -> Any:
        """As torch calls it."""
        self._processes.sent_bytes += input_tensor.nbytes
        return super().__call__(output_tensor, input_tensor, *others, **named)


class CountedScatter(DefaultReduceScatter):
    """Sums gradients, and leaves each process its part."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *others: Any, **named: Any) -> Any:
        """As torch calls it."""
        self._processes.sent_bytes += input_tensor.nbytes
        return super().__call__(output_tensor, input_tensor, *others, **named)
