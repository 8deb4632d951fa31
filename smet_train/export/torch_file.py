"""One file of torch's own sparse tensors, for inference with torch alone."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from smet_train.export.dense import architecture_of
from smet_train.sparse import SparseLinear
from smet_train.sparse.dense import scatter_dense
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import files
from smet_train.train.state import model_tensors
from smet_train.trained import Trained

FILE = "model.pt"


def write_torch(trained: Trained, folder: Path) -> None:
    """Write ``model.pt``, which ``torch.load(..., weights_only=True)`` reads."""
    tensors = model_tensors(trained.model)
    layers = sparse_layers(trained.model)
    for name, layer in layers.items():
        del tensors[f"{name}.values"], tensors[f"{name}.packed_index"]
        tensors[f"{name}.weight"] = sparse_weight(layer)
    content = {"sparse": list(layers), "config": architecture_of(trained.model), "tensors": tensors}
    # Into memory first: of a full disk torch's own writer says nothing that a person could understand.
    stored = io.BytesIO()
    torch.save(content, stored)
    files.write(folder / FILE, iter([stored.getbuffer()]))


@torch.no_grad()
def sparse_weight(layer: SparseLinear) -> Tensor:
    """W, shape (O, I), as a BSR tensor where blocks divide it, else as a CSR tensor of the single values.

    A value that is active and 0 stays an entry. Columns are in 32 bits where sites are.
    """
    layout, index_K = layer.layout, layer.index
    shape = layout.out_features, layout.in_features
    divides = layout.out_features % layout.block == 0 and layout.in_features % layout.block == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta")
        if layout.block > 1 and divides:
            starts, columns = _rows(index_K, layout.block_rows, layout.block_columns)
            return torch.sparse_bsr_tensor(starts, columns, layer.values, shape, check_invariants=True)
        index_K, values_K = _single_values(layer) if layout.block > 1 else (index_K, layer.values)
        starts, columns = _rows(index_K, *shape)
        return torch.sparse_csr_tensor(starts, columns, values_K, shape, check_invariants=True)


def _single_values(layer: SparseLinear) -> tuple[Tensor, Tensor]:
    """Of a layer of blocks: the sites of its single values in W, ascending, and the values; none from beyond W."""
    layout = layer.layout
    active_OI = scatter_dense(torch.ones_like(layer.values, dtype=torch.bool), layer.index, layout)
    return active_OI.flatten().nonzero().squeeze(1).to(layout.index_dtype), layer.to_dense()[active_OI]


def _rows(index_K: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where each row begins and the last ends (rows + 1,), and the column of each entry (K,)."""
    edges = torch.arange(rows + 1, dtype=torch.int64, device=index_K.device) * columns
    starts = torch.searchsorted(index_K.long(), edges).to(index_K.dtype)
    return starts, index_K.remainder(columns)
