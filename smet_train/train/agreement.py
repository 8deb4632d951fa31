"""Checks that the processes of a run hold the same model: they never send it to each other."""

from collections.abc import Mapping

import torch
from torch import nn

from smet_train.errors import TrainingError
from smet_train.sparse import SparseLinear
from smet_train.sparse.shards import is_sharded
from smet_train.topology.processes import digest
from smet_train.train.processes import Processes


class SameTopology:
    """Whether all processes have chosen the same sites in an update.

    Each index is hashed when its layer is whole: afterwards, where layers are split, each process holds its part of
    what it has chosen itself. A process alone hashes nothing.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._digests: dict[str, int] = {}

    def look(self, name: str, layer: SparseLinear) -> None:
        """Note the index of a layer that has moved."""
        if self._processes.size > 1:
            self._digests[name] = digest(layer.index)

    def check(self, step: int) -> None:
        """Compare what was noted with what the leading process has noted.

        Raises:
            TrainingError: in all processes, if one has another index; the message names the layer and the process.
        """
        _check(self._processes, self._digests, f"after step {step}: layer")


def digests(model: nn.Module) -> dict[str, int]:
    """A hash of each tensor of ``model`` that is not split over processes: no two of them hold the same of others."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items() if not is_sharded(tensor)}


def check_same_start(processes: Processes, model: nn.Module, before_split: Mapping[str, int]) -> None:
    """Compare a hash of all tensors of ``model`` with that of the leading process.

    Args:
        before_split: :func:`digests` of a model that was split since then.

    Raises:
        TrainingError: in all processes, if one differs; the message names the tensor and the process.
    """
    _check(processes, {**before_split, **(digests(model) if processes.size > 1 else {})}, "at the start: tensor")


def _check(processes: Processes, digests: Mapping[str, int], where: str) -> None:
    if processes.size == 1:
        return
    every = processes.gathered(torch.tensor(list(digests.values()), dtype=torch.int64))
    differs = (every != every[0]).nonzero().tolist()
    if differs:
        process, place = differs[0]
        raise processes.alike(
            TrainingError(
                f"{where} {list(digests)[place]} of process {process} is not that of process 0 ({len(differs)} differ "
                "in all). All processes must run the same versions of torch and smet-train, on the same kind of "
                "machine; the same command goes on from the newest checkpoint",
                exit_status=1,
            )
        )
