from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from smet_train.errors import ConfigError, LayoutError
from smet_train.sparse import SparseLinear, choose_layers, linear_layer_names, sparsify


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.conv = Conv1D(16, 8)  # out 16, in 8, weight (8, 16)


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 10, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_names_cover_linear_and_conv1d() -> None:
    assert linear_layer_names(Model()) == [
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("up", "down", "conv")),
        "head",
    ]


def test_patterns_choose_in_model_order() -> None:
    assert choose_layers(Model(), ["*.down", "*.up"], ["blocks.1.*"]) == ["blocks.0.up", "blocks.0.down"]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["*.q_proj"], [], r"sparsity\.include: the pattern '\*\.q_proj' matches none of the 7 linear layers; layers"),
        (["*.up"], ["*.nope"], r"sparsity\.exclude: the pattern '\*\.nope' matches none"),
        (["*.up"], ["*"], "leaves no layer"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(include: list[str], exclude: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_layers(Model(), include, exclude)


def test_a_tied_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"it shares its weight \(embed\.weight = head\.weight\); add it"):
        choose_layers(Model(tied=True), ["*"])


@pytest.mark.parametrize(("init", "scale"), [("dense", 1.0), ("active", 0.25**-0.5)])
def test_values_are_the_dense_weights_at_the_chosen_sites(init: str, scale: float) -> None:
    torch.manual_seed(0)
    model, before = Model(), Model()
    before.load_state_dict(model.state_dict())
    layers = sparsify(model, ["blocks.*"], density=0.25, seed=1, init=init)
    assert list(layers) == linear_layer_names(before)[:-1]
    for name, layer in layers.items():
        assert model.get_submodule(name) is layer
        original: Any = before.get_submodule(name)
        weight = original.weight.t() if isinstance(original, Conv1D) else original.weight
        assert layer.layout.n_active == round(0.25 * weight.numel())
        active = layer.to_dense() != 0
        torch.testing.assert_close(layer.to_dense()[active], weight[active] * scale)
        assert int(active.sum()) == layer.layout.n_active


@pytest.mark.parametrize("name", ["blocks.0.up", "blocks.0.down", "blocks.0.conv"])
def test_at_density_one_the_layer_computes_what_it_did(name: str) -> None:
    torch.manual_seed(0)
    model = Model()
    original = model.get_submodule(name)
    sparsify(model, [name], density=1.0)
    sparse = model.get_submodule(name)
    assert isinstance(sparse, SparseLinear)
    x = torch.randn(3, sparse.in_features)
    torch.testing.assert_close(sparse(x), original(x))


def test_sites_depend_on_seed_and_layer_name_only() -> None:
    first = sparsify(Model(), ["blocks.*"], density=0.25, seed=1)
    again = sparsify(Model(), ["blocks.1.*"], density=0.25, seed=1)
    other = sparsify(Model(), ["blocks.*"], density=0.25, seed=2)
    assert all(first[name].index.equal(layer.index) for name, layer in again.items())
    assert not first["blocks.0.up"].index.equal(first["blocks.1.up"].index)
    assert not first["blocks.0.up"].index.equal(other["blocks.0.up"].index)


def test_a_layer_too_small_for_the_density_says_what_to_do() -> None:
    with pytest.raises(LayoutError, match=r"holds 1 to 96 active values, got 0; raise sparsity\.density"):
        sparsify(Model(), ["*.up"], density=0.001)
