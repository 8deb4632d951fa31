"""What a topology has seen so far: one bit a site of each layer, set once the site has been active."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import held_range, is_sharded, local, part_of, split_as


def _bytes(layout: Layout) -> int:
    return (layout.sites + 7) // 8


def exploration_bytes(layers: Mapping[str, SparseLinear]) -> int:
    """What :class:`Exploration` holds for ``layers``, in this process where they are split."""
    return sum(len(held_range(_bytes(layer.layout), layer.values)) for layer in layers.values())


class Exploration:
    """Counts the sites of ``layers`` that were ever active.

    Args:
        layers: whole; if they are split over processes afterwards, :meth:`split` splits what is held here.

    Attributes:
        bits: by layer, the site s in bit ``s % 8`` of byte ``s // 8``.
        ever_active: sites of all layers, in all processes, as :meth:`settle` has counted them last.
    """

    def __init__(self, layers: Mapping[str, SparseLinear]) -> None:
        self._sites = sum(layer.layout.sites for layer in layers.values())
        self.bits: dict[str, Tensor] = {}
        self.ever_active = self._unsettled = 0
        for name, layer in layers.items():
            self.bits[name] = torch.zeros(_bytes(layer.layout), dtype=torch.uint8, device=layer.values.device)
            self.visit(name, layer.index)
        self.settle(lambda _: None)

    @property
    def fraction(self) -> float:
        """Sites ever active over all sites (in-time over-parameterization, arXiv 2102.02887)."""
        return self.ever_active / self._sites

    def split(self, layers: Mapping[str, SparseLinear]) -> None:
        """Keep the bytes that this process has to hold, if the values of ``layers`` are split."""
        self.bits = {name: split_as(bits, layers[name].values) for name, bits in self.bits.items()}

    def visit(self, name: str, sites: Tensor) -> None:
        """Note that ``sites``, all different, are active now: here those whose bytes this process holds."""
        held = held_range(self.bits[name].shape[0], self.bits[name])
        bits, sites = local(self.bits[name]), sites.long() - 8 * held.start
        sites = sites[(sites >= 0) & (sites < 8 * len(held))]
        unseen = sites[(bits[sites >> 3] >> (sites & 7).to(torch.uint8)) & 1 == 0]
        # Bits of different sites in one byte differ and were clear, so adding them sets them.
        bits.index_add_(0, unseen >> 3, torch.ones_like(unseen, dtype=torch.uint8) << (unseen & 7).to(torch.uint8))
        self._unsettled += unseen.numel()

    def settle(self, add_up: Callable[[Tensor], object]) -> None:
        """Count what was visited since the last call.

        Args:
            add_up: replaces a tensor by its sum over the processes; called if each of them holds a part.
        """
        a_layer = next(iter(self.bits.values()))
        visited = torch.tensor(self._unsettled, device=a_layer.device)
        if is_sharded(a_layer):
            add_up(visited)
        self.ever_active += int(visited)
        self._unsettled = 0

    def load(self, bits: Mapping[str, Tensor], ever_active: int) -> None:
        """Go on from the whole ``bits`` and the count of another one; of what is split, take this process's part."""
        for name, held in self.bits.items():
            local(held).copy_(part_of(bits[name], held))
        self.ever_active = ever_active
