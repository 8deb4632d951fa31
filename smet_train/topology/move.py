"""A topology update of one layer as data: the new index, and where each of its values comes from."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Move:
    """``new_index_K``: the active sites afterwards, ascending. ``source_K``: the old slot now at slot k, -1 if grown.

    The one rule for everything that is held per slot: ``where(source >= 0, old[source], 0)``.
    """

    new_index_K: Tensor
    source_K: Tensor

    @property
    def grown_K(self) -> Tensor:
        """True at the slots that were grown."""
        return self.source_K < 0

    def gather(self, old_K: Tensor) -> Tensor:
        """What was held per slot (any shape behind the first dimension), in the new order, zero where grown."""
        moved = old_K.index_select(0, self.source_K.clamp(min=0))
        return moved.masked_fill_(self.grown_K.view(-1, *[1] * (old_K.dim() - 1)), 0)

    def gather_all(self, old_K: Tensor) -> Tensor:
        """As :meth:`gather`, but the n-th grown slot takes over what the n-th dropped slot held."""
        moved = self.gather(old_K)
        dropped = torch.ones_like(self.grown_K)
        dropped[self.source_K[~self.grown_K]] = False
        moved[self.grown_K] = old_K[dropped]
        return moved


def no_move(index_K: Tensor) -> Move:
    """The move that keeps every slot."""
    return make_move(index_K, torch.ones_like(index_K, dtype=torch.bool), index_K[:0])


def make_move(index_K: Tensor, keep_K: Tensor, grown_sites: Tensor) -> Move:
    """The move that keeps the slots marked in ``keep_K`` and adds ``grown_sites`` (none of them in ``index_K``)."""
    kept_slots = keep_K.nonzero().squeeze(1)
    sites = torch.cat([index_K[kept_slots], grown_sites])
    slots = torch.cat([kept_slots, kept_slots.new_full((grown_sites.numel(),), -1)])
    new_index, order = sites.sort()
    return Move(new_index, slots[order])
