"""Architectures of transformers that treat their linear layers in ways of their own, at density one and below."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from smet_train import SparseTraining
from smet_train.sparse import SparseLinear, default_layers, sparsify
from smet_train.topology import MoveRules

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
JAMBA = {"intermediate_size": 32, "num_key_value_heads": 2, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "T5ForConditionalGeneration": ("T5Config", {**T5, "dropout_rate": 0.0}),  # reads the dtype of a weight
    "MambaForCausalLM": ("MambaConfig", {**SIZES, "state_size": 4, "time_step_rank": 4}),  # multiplies by a weight
    "JambaForCausalLM": ("JambaConfig", {**SIZES, **JAMBA, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "FalconForCausalLM": ("FalconConfig", {**SIZES, "alibi": False}),  # a subclass, and sums in place
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    config, settings = ARCHITECTURES[name]
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**settings))
    return model


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    given = {"decoder_input_ids": tokens} if "T5" in type(model).__name__ else {"use_cache": False}
    made: torch.Tensor = model(input_ids=tokens, **given).logits
    return made


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sparse_layers_compute_and_learn_what_dense_ones_do(name: str) -> None:
    model, dense = built(name), built(name)
    names = default_layers(model)
    sparsify(model, names, density=1.0)
    tokens = torch.arange(24).view(2, 12)
    ours, theirs = logits(model, tokens), logits(dense, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    reached = 0
    for layer_name in names:
        layer, weight = model.get_submodule(layer_name), dense.get_submodule(layer_name).weight
        assert isinstance(layer, SparseLinear)
        assert isinstance(weight, nn.Parameter)
        assert (layer.values.grad is None) == (weight.grad is None)
        if weight.grad is not None and layer.values.grad is not None:
            reached += 1
            torch.testing.assert_close(layer.values.grad.view_as(weight), weight.grad, rtol=1e-3, atol=1e-6)
    assert reached


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_topology_grows_by_gradient(name: str) -> None:
    model = built(name)
    rules = MoveRules(drop="magnitude_and_gradient", grow="gradient")
    training = SparseTraining(model, density=0.3, lr=1e-3, total_steps=9, interval=1, rules=rules)
    before = {name: layer.index for name, layer in training.layers.items()}
    tokens = torch.arange(24).view(2, 12)
    logits(model, tokens).square().mean().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    moved = training.after_step(lambda: logits(model, tokens).square().mean().backward())
    assert moved["grown"] > 0
    for layer_name, layer in training.layers.items():
        assert layer.index.numel() == layer.layout.n_active
        if "dt_proj" in layer_name:  # of which Mamba reads the weight alone
            assert not torch.equal(layer.index, before[layer_name])
