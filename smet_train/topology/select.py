"""Which weights are dropped and which sites are grown: exact counts, the same answer on every device and process."""

import torch
from torch import Tensor

from smet_train.sparse.sampling import draw_distinct, inactive_sites


def keep_highest(scores_K: Tensor, n_drop: int) -> Tensor:
    """A bool tensor (K,), False at the ``n_drop`` least scores; among equal scores the lowest slots go first.

    A threshold and a count of ties decide, not a sort, so that the choice does not depend on an order that a device or
    a library leaves open.
    """
    if n_drop == 0:
        return torch.ones_like(scores_K, dtype=torch.bool)
    threshold = scores_K.kthvalue(n_drop).values
    keep = ~(scores_K < threshold)
    ties = (scores_K == threshold).nonzero().squeeze(1)
    keep[ties[: n_drop - int((~keep).sum())]] = False
    return keep


def grow_random(index_K: Tensor, n_grow: int, sites: int, key: int) -> Tensor:
    """``n_grow`` distinct sites, uniform among those inactive in ``index_K``, ascending (SET and SMET).

    The index is the one before the drop, so a weight dropped in this update is not grown in it.
    """
    ranks_N = draw_distinct(n_grow, sites - index_K.numel(), key, index_K.device)
    return inactive_sites(index_K, ranks_N.sort().values).to(index_K.dtype)
