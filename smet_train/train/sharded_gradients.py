"""Parameters, gradients and optimizer state split over the processes of a run, by torch's ``fully_shard``."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from smet_train.errors import ConfigError
from smet_train.sparse.ledger import sparse_layers
from smet_train.train.processes import Processes, lost_process_told
from smet_train.train.step import TokenLoss


class ShardedGradients:
    """The loss of a micro-batch, whose backward pass leaves each process its slots of the mean gradients.

    Each block of the model is whole while it is computed, and the parameters outside of blocks from the beginning of
    the forward pass to the end of the backward pass; else a process holds its part of the slots of each parameter,
    which is a DTensor then. Indices are split and gathered with the parameters. Methods are as those of
    :class:`smet_train.train.shared_gradients.SharedGradients`; a call outside of the training step is one of all
    processes too.

    Args:
        model: with all its parameters, the same in all processes.
        before_split: :func:`smet_train.train.agreement.digests` of ``model``, for a comparison over the processes.
        mesh: of the processes; None = made of the default group, without a word to the others.

    Raises:
        ConfigError: if this version of torch can't split an index.
    """

    def __init__(
        self,
        processes: Processes,
        model: nn.Module,
        precision: str,
        before_split: Mapping[str, int],
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.before_split = before_split
        for layer in sparse_layers(model).values():
            layer.index_as_parameter()
        root = TokenLoss(model, precision)
        if mesh is None:
            assert dist.group.WORLD is not None, "of several processes"
            mesh = DeviceMesh.from_group(dist.group.WORLD, next(model.parameters()).device.type)
        for module in [*blocks(model), root]:
            _count(_shard(module, mesh), processes)
        self._root: Any = root

    def renew(self) -> None:
        """Nothing is derived from the shapes of parameters."""

    def __call__(self, windows_BT: Tensor) -> Tensor:
        """As :func:`smet_train.train.step.token_loss`."""
        with lost_process_told():
            loss: Tensor = self._root(windows_BT)
        if not torch.is_grad_enabled():
            self._root.reshard()  # there is no backward pass to do so
        return loss

    def accumulating(self, more: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Every micro-batch's gradients are shared: to keep them back would take room for those of the whole model."""
        return nullcontext()


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformers model, which it never splits over devices; inner ones first."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names][::-1]


def _shard(module: nn.Module, mesh: DeviceMesh) -> FSDPModule:
    try:
        return fully_shard(module, mesh=mesh)
    except RuntimeError as error:
        if "can require gradients" not in str(error):  # what torch 2.11 says of an index
            raise
        raise ConfigError(
            f"train.parallel=fsdp needs a newer torch than {torch.__version__}, whose fully_shard can't split whole "
            "numbers, as an index is; install torch 2.13, or write train.parallel=ddp"
        ) from error


def _count(module: FSDPModule, processes: Processes) -> None:
    from smet_train.train.counted_collectives import CountedGather, CountedScatter  # what torch may move

    module.set_custom_all_gather(CountedGather(processes))
    module.set_custom_reduce_scatter(CountedScatter(processes))
