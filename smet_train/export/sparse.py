"""A folder with the active values alone: as large as the model is dense, not as large as its matrices."""

import json
from pathlib import Path

from torch import Tensor

from smet_train.export.dense import architecture_of, transposed_layers
from smet_train.models import sparse_folder
from smet_train.models.sparse_folder import SparseDescription
from smet_train.sparse.index_coding import encode_sites
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import files
from smet_train.train.state import model_tensors
from smet_train.trained import Trained


def write_sparse(trained: Trained, folder: Path) -> None:
    """Write description, architecture and tensors into ``folder``; :func:`smet_train.export.read_sparse` reads them."""
    layers = sparse_layers(trained.model)
    architecture = architecture_of(trained.model)
    description = SparseDescription(
        layers={name: layer.layout for name, layer in layers.items()},
        transposed=transposed_layers(trained.model),
        architecture=architecture,
    )
    files.replace_text(folder / sparse_folder.DESCRIPTION, json.dumps(description.to_json(), indent=1) + "\n")
    files.replace_text(folder / sparse_folder.ARCHITECTURE, json.dumps(architecture, indent=2) + "\n")
    files.write_tensors(folder / sparse_folder.TENSORS, stored_tensors(trained))


def stored_tensors(trained: Trained) -> dict[str, Tensor]:
    """What the folder's safetensors file holds: ``<layer>.values``, the coded ``<layer>.index``, and all that is
    dense."""
    tensors = model_tensors(trained.model)
    for name, layer in sparse_layers(trained.model).items():
        del tensors[f"{name}.packed_index"]
        tensors[f"{name}.index"] = encode_sites(layer.index, layer.layout)
    return tensors
