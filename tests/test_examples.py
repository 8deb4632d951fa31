"""The files of examples/ do what they show, in seconds, on a CPU, without a network."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from smet_train.sparse.ledger import sparse_layers

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["plain_loop", "transformers_trainer"])
def test_the_loss_falls(name: str) -> None:
    losses = load(name).main()
    assert len(losses) == 60
    assert losses[-1] < losses[0] / 3


def test_the_plain_loop_goes_on_from_its_file_as_if_never_stopped() -> None:
    module = load("plain_loop")
    model, training = module.build()
    counts = {name: layer.layout.n_active for name, layer in training.layers.items()}
    assert module.train(model, training, until=60) == module.main()
    layers = sparse_layers(model)
    assert {name: layer.index.numel() for name, layer in layers.items()} == counts
    assert "lm_head" not in layers
    assert len(layers) == 14


def test_torchs_transformer_trains_and_evaluates() -> None:
    model, training, losses = load("torch_transformer").main()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert {name.rpartition(".")[2] for name in training.layers} == {"linear1", "linear2"}
    for layer in training.layers.values():
        assert layer.index.numel() == round(0.2 * layer.layout.sites) == layer.values.numel()
    with torch.no_grad():
        assert model(torch.randint(16, (2, 8))).isfinite().all()
