"""A sparse folder holds every value and every site, and little else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smet_train.export import read_sparse, read_sparse_tensors
from smet_train.export.sparse import write_sparse
from smet_train.sparse.ledger import sparse_layers
from smet_train.train.state import model_tensors
from smet_train.trained import open_trained
from tests.export.conftest import SPARSE_RUNS


@pytest.mark.parametrize("name", SPARSE_RUNS)
def test_the_model_that_is_read_is_the_one_that_was_written(
    name: str, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = open_trained(run_of(name))
    write_sparse(trained, tmp_path)
    model = read_sparse(tmp_path)
    written, read = model_tensors(trained.model), model_tensors(model)
    assert written.keys() == read.keys()
    for key, tensor in written.items():
        assert tensor.dtype == read[key].dtype
        assert torch.equal(tensor, read[key])
    layouts = {name: layer.layout for name, layer in sparse_layers(trained.model).items()}
    assert {name: layer.layout for name, layer in sparse_layers(model).items()} == layouts
    assert not model.training
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, trained.model(input_ids=tokens).logits)


def test_tensors_come_with_their_sites(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    trained = open_trained(run_of("gpt2"))
    write_sparse(trained, tmp_path)
    tensors, description = read_sparse_tensors(tmp_path)
    layers = sparse_layers(trained.model)
    assert description.layers.keys() == layers.keys() == description.transposed
    for name, layer in layers.items():
        assert torch.equal(tensors[f"{name}.index"], layer.index)
        assert torch.equal(tensors[f"{name}.values"], layer.values)
        assert torch.equal(tensors[f"{name}.bias"], layer.bias)
