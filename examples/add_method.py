"""Drop and grow rules of one's own; examples/method/even.yaml makes a method of them.

smet-train --config-dir examples +experiment=demo method=even plugins=[examples/add_method.py]
"""

import torch
from torch import Tensor

from smet_train.topology import Question, register_drop, register_grow


def row_magnitude(asked: Question) -> Tensor:
    """|value| over the mean of its row, so that rows of small weights keep some too; the least are dropped."""
    layer = asked.layer
    size_K = layer.values.abs() if layer.layout.block == 1 else layer.values.abs().sum((1, 2))
    row_K = layer.index.long() // layer.layout.block_columns
    sums = size_K.new_zeros(layer.layout.block_rows).index_add(0, row_K, size_K)
    counts = torch.bincount(row_K, minlength=layer.layout.block_rows)
    return size_K * (counts / sums.clamp_min(1e-30))[row_K]


def emptiest_columns(asked: Question, n_grow: int) -> Tensor:
    """Inactive sites of the inputs that have the fewest active weights."""
    layout, index_K = asked.layer.layout, asked.layer.index.long()
    held = torch.bincount(index_K % layout.block_columns, minlength=layout.block_columns)
    inactive = torch.ones(layout.sites, dtype=torch.bool, device=index_K.device)
    inactive[index_K] = False
    sites = inactive.nonzero().squeeze(1)
    fewest = held[sites % layout.block_columns].argsort(stable=True)
    return sites[fewest[:n_grow]]


register_drop("row_magnitude", row_magnitude)  # needs_gradient=True: asked.gradient is there
register_grow("emptiest_columns", emptiest_columns)
