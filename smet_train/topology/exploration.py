"""What a topology has seen so far: one bit a site of each layer, set once the site has been active."""

from collections.abc import Mapping

import torch
from torch import Tensor

from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear


def _bytes(layout: Layout) -> int:
    return (layout.sites + 7) // 8


def exploration_bytes(layers: Mapping[str, SparseLinear]) -> int:
    """What :class:`Exploration` holds for ``layers``."""
    return sum(_bytes(layer.layout) for layer in layers.values())


class Exploration:
    """Counts the sites of ``layers`` that were ever active."""

    def __init__(self, layers: Mapping[str, SparseLinear]) -> None:
        self._sites = sum(layer.layout.sites for layer in layers.values())
        self.bits: dict[str, Tensor] = {}
        self.ever_active = 0
        for name, layer in layers.items():
            self.bits[name] = torch.zeros(_bytes(layer.layout), dtype=torch.uint8, device=layer.values.device)
            self.visit(name, layer.index)

    @property
    def fraction(self) -> float:
        """Sites ever active over all sites (in-time over-parameterization, arXiv 2102.02887)."""
        return self.ever_active / self._sites

    def visit(self, name: str, sites: Tensor) -> None:
        """Note that ``sites``, all different, are active now."""
        sites = sites.long()
        bits = self.bits[name]
        unseen = sites[(bits[sites >> 3] >> (sites & 7).to(torch.uint8)) & 1 == 0]
        # Bits of different sites in one byte differ and were clear, so adding them sets them.
        bits.index_add_(0, unseen >> 3, torch.ones_like(unseen, dtype=torch.uint8) << (unseen & 7).to(torch.uint8))
        self.ever_active += unseen.numel()
