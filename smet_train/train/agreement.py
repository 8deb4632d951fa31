"""Checks that the processes of a run hold the same model: they never send it to each other."""

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor, nn

from smet_train.errors import TrainingError
from smet_train.sparse import SparseLinear
from smet_train.sparse.shards import is_sharded
from smet_train.train.processes import Processes


def check_same_topology(processes: Processes, layers: Mapping[str, SparseLinear], step: int) -> None:
    """Compare a hash of every index with that of the leading process.

    Raises:
        TrainingError: in all processes, if one has another index; the message names the layer and the process.
    """
    _check(processes, {name: layer.index for name, layer in layers.items()}, f"after step {step}: layer")


def check_same_start(processes: Processes, model: nn.Module) -> None:
    """Compare a hash of all tensors of ``model`` with that of the leading process.

    What is split over the processes is left out: no two of them hold the same of it.

    Raises:
        TrainingError: in all processes, if one differs; the message names the tensor and the process.
    """
    held = {name: tensor for name, tensor in model.state_dict().items() if not is_sharded(tensor)}
    _check(processes, held, "at the start: tensor")


def _digest(tensor: Tensor) -> int:
    """Eight bytes that differ where the tensors do."""
    held = tensor.detach().cpu().contiguous()
    content = memoryview(held.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)


def _check(processes: Processes, held: Mapping[str, Tensor], where: str) -> None:
    if processes.size == 1:
        return
    every = processes.gathered(torch.tensor([_digest(tensor) for tensor in held.values()], dtype=torch.int64))
    differs = (every != every[0]).nonzero().tolist()
    if differs:
        process, place = differs[0]
        raise TrainingError(
            f"{where} {list(held)[place]} of process {process} is not that of process 0 ({len(differs)} differ in "
            "all). All processes must run the same versions of torch and smet-train, on the same kind of machine; the "
            "same command goes on from the newest checkpoint",
            exit_status=1,
        )
