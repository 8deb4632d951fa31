"""The state of a run as tensors and plain values, of which each process of a sharded run holds its part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from smet_train.sparse.shards import is_sharded, local


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a run needs to continue: ``tensors`` by file and name, ``plain`` JSON-able values.

    A tensor that is split over processes is a DTensor. ``copies`` are of what this process holds of each tensor, if
    that is to be written in place of what it will hold by then.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    plain: Mapping[str, Any]
    copies: Mapping[str, Mapping[str, Tensor]] | None = None

    @property
    def held(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What this process has of each tensor."""
        if self.copies is not None:
            return self.copies
        return {part: {name: local(tensor) for name, tensor in held.items()} for part, held in self.tensors.items()}

    @property
    def is_split(self) -> bool:
        """Whether any tensor is split over processes."""
        return any(is_sharded(tensor) for tensor in flat(self.tensors).values())

    def split(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The tensors that are split over processes, by ``<file>.<name>``, each with what this process has of it."""
        held = flat(self.held)
        return {name: (tensor, held[name]) for name, tensor in flat(self.tensors).items() if is_sharded(tensor)}


def flat(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors by ``<file>.<name>``."""
    return {f"{part}.{name}": tensor for part, held in tensors.items() for name, tensor in held.items()}
