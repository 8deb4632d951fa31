"""A compute backend of one's own: gather the inputs of the active weights, multiply, add up by rows.

smet-train +experiment=demo plugins=[examples/add_backend.py] sparsity.backend=gather
"""

import torch
from torch import Tensor

from smet_train.sparse import Layout
from smet_train.sparse.backends import register_backend
from smet_train.sparse.index import unpack


class GatherBackend:
    """No dense weight and no dense gradient; a product holds one number for each token and active weight."""

    name = "gather"

    def unsupported(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> str | None:
        """None, or why not: told to the user."""
        return None if layout.block == 1 else "it takes single values; write sparsity.block_size=1"

    def plan(self, packed: Tensor, layout: Layout) -> tuple[Tensor, Tensor, int]:
        """Worked out once after each topology update: row and column of each value, and the number of rows."""
        sites = unpack(packed, layout).long()
        return sites // layout.in_features, sites % layout.in_features, layout.out_features

    def matmul(self, x_NI: Tensor, values: Tensor, plan: tuple[Tensor, Tensor, int]) -> Tensor:
        """y = x W^T; autograd differentiates it in x and values."""
        rows_K, columns_K, out_features = plan
        products = x_NI.index_select(-1, columns_K) * values
        y_NO = products.new_zeros(*x_NI.shape[:-1], out_features)
        return y_NO.index_add(-1, rows_K, products)


register_backend(GatherBackend())
