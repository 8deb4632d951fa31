"""torch's own sparse tensors hold the trained weights, and torch computes with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from smet_train.export.write import export
from smet_train.sparse.ledger import sparse_layers
from smet_train.train.state import model_tensors
from smet_train.trained import Trained
from tests.export.conftest import SPARSE_RUNS, documented


@pytest.mark.parametrize("name", SPARSE_RUNS)
def test_every_weight_multiplies_as_the_trained_layer_does(
    name: str, trained_as: Callable[[str], Trained], run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = trained_as(name)
    export(run_of(name), "torch", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    layers = sparse_layers(trained.model)
    assert content["sparse"] == list(layers)
    for layer_name, layer in layers.items():
        weight = content["tensors"].pop(f"{layer_name}.weight")
        assert weight.layout == (torch.sparse_bsr if layer.layout.block == 16 else torch.sparse_csr)
        assert weight.dtype == layer.values.dtype
        assert torch.equal(weight.to_dense(), layer.to_dense())
        if layer.layout.block in (1, 16):  # nothing reaches beyond W, and zeros are entries
            assert weight.values().numel() == layer.layout.n_values
        x = torch.randn(2, 3, layer.in_features)
        bias = None if layer.bias is None else layer.bias.float()
        torch.testing.assert_close(F.linear(x, weight.float(), bias), layer.float()(x))
    rest = {key: value for key, value in model_tensors(trained.model).items() if key in content["tensors"]}
    assert all(torch.equal(content["tensors"][key], value) for key, value in rest.items())


@pytest.mark.parametrize("name", ["llama_gqa", "llama_tied", "gpt2", "gpt2_tied_blocks", "sparse_output_layer"])
def test_the_loader_of_the_docs_makes_the_model(
    name: str, trained_as: Callable[[str], Trained], run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = trained_as(name)
    export(run_of(name), "torch", tmp_path / "out")
    model = documented("load_sparse")(tmp_path / "out" / "model.pt")
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        ours, theirs = (each(input_ids=tokens).logits for each in (trained.model, model))
    assert (ours - theirs).abs().max() <= 1e-4
    layouts = {module.weight.layout for module in model.modules() if isinstance(module, torch.nn.Linear)}
    assert layouts & {torch.sparse_csr, torch.sparse_bsr}
