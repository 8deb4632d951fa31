"""The processes of a torch process group that train one model, each with batches of its own."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor

from smet_train.errors import TrainingError
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import whole


def digest(tensor: Tensor) -> int:
    """Eight bytes, as a signed number, that differ where the tensors do."""
    held = tensor.detach().cpu().contiguous()
    content = memoryview(held.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)


class ProcessesOf:
    """A :class:`smet_train.topology.group.Group` over ``group`` (None: all processes).

    Args:
        device: of what they send each other.
    """

    def __init__(self, group: "dist.ProcessGroup | None", device: torch.device) -> None:
        self._group = group
        self._device = device
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def add_up(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all."""
        dist.all_reduce(tensor, group=self._group)

    def add_up_in(self, tensor: Tensor, owner: int) -> None:
        """Replace ``tensor`` by its sum over all in the process ``owner``; elsewhere what it holds is lost."""
        dist.reduce(tensor, group=self._group, group_dst=owner)

    def spread(self, tensor: Tensor, owner: int) -> None:
        """Replace ``tensor`` by that of the process ``owner``."""
        dist.broadcast(tensor, group=self._group, group_src=owner)

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """As :func:`smet_train.sparse.shards.whole`."""
        return whole(part, like)

    def odd_one(self, numbers: Iterable[int]) -> tuple[int, int] | None:
        """(process, position) of the first of ``numbers`` that is not that of process 0; None if all have the same."""
        mine = torch.tensor(list(numbers), dtype=torch.int64, device=self._device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self._group)
        differs = (torch.stack(every) != every[0]).nonzero().tolist()
        return (differs[0][0], differs[0][1]) if differs else None

    def check_ready(self, step: int, micro_batches: int) -> None:
        """Raises TrainingError, in all processes, if they are about to make different topology updates."""
        odd = self.odd_one((step, micro_batches))
        if odd is not None:
            what = ("step", "number of micro-batches that after_step was given")[odd[1]]
            raise TrainingError(
                f"the topology moves, and the {what} of process {odd[0]} is not that of process 0; all processes must "
                "call after_step once for each of the same steps, with as many micro-batches"
            )

    def check_same(self, layers: Mapping[str, SparseLinear], step: int) -> None:
        """Compare a hash of each index.

        Raises:
            TrainingError: in all processes, if one has chosen other sites.
        """
        odd = self.odd_one(digest(layer.packed_index) for layer in layers.values())
        if odd is not None:
            raise TrainingError(
                f"after step {step} the sites of layer {list(layers)[odd[1]]} in process {odd[0]} are not those of "
                "process 0: the processes do not train the same model. Give all of them the same seed and settings, "
                "make the model sparse before DistributedDataParallel wraps it, and average their gradients before "
                "each optimizer step"
            )
