"""Between single values and a dense weight on a CPU, row by row, straight from the packed index.

The same as ``scatter_dense`` and ``gather_values`` of the unpacked index, bit for bit, without the index of 32 or 64
bits that torch's operations need.
"""

from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.compiled import numba_is_installed, on_threads
from smet_train.sparse.layout import Layout

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # values are copied as they are


def rows_are_compiled(layout: Layout, device: torch.device) -> bool:
    """Whether these functions are for layers of ``layout`` on ``device``."""
    return layout.block == 1 and device.type == "cpu" and numba_is_installed()


def rows_of(packed: Tensor, layout: Layout) -> Any:
    """Where the active sites are, for the functions below."""
    from smet_train.sparse.backends import csr_kernels

    with on_threads(torch.get_num_threads()):
        return csr_kernels.compressed_rows(packed, layout)


def scatter_rows(values: Tensor, rows: Any, layout: Layout) -> Tensor:
    """The dense weight (O, I) of ``values`` (K,)."""
    from smet_train.sparse.backends import csr_kernels

    starts, columns = rows
    dense = values.new_empty(layout.out_features, layout.in_features)
    bits = _BITS[values.element_size()]
    with on_threads(torch.get_num_threads()):
        csr_kernels.scatter(starts, columns, csr_kernels.array_of(values.view(bits)), dense.view(bits).numpy())
    return dense


def gather_rows(dense: Tensor, rows: Any, layout: Layout) -> Tensor:
    """The entries (K,) of ``dense`` (O, I)."""
    from smet_train.sparse.backends import csr_kernels

    starts, columns = rows
    values = dense.new_empty(layout.n_active)
    bits = _BITS[dense.element_size()]
    with on_threads(torch.get_num_threads()):
        csr_kernels.gather(starts, columns, dense.detach().contiguous().view(bits).numpy(), values.view(bits).numpy())
    return values
