"""Which layers a sparse one takes the place of, what it takes over, and why others stay dense."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from smet_train.errors import ConfigError
from smet_train.sparse import SparseLinear, choose_layers, default_layers, sparsify
from smet_train.sparse.replaceable import Layers


class Written(nn.Linear):
    """The product of nn.Linear in other words, as Falcon has it."""

    def forward(self, input: Tensor) -> Tensor:
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


class Scaled(nn.Linear):
    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__(inputs, outputs)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return self.scale * super().forward(input)


class Clamped(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(-100, 100))


class Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, 0.1, self.training))


class Routed(nn.Linear):
    def forward(self, input: Tensor, chosen: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input)[chosen]


class Adapted(nn.Linear):
    """The same as nn.Linear until its second matrix has been trained."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = nn.Parameter(torch.ones(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.lora_A.T @ self.lora_B.T


def patched() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def with_state_hook() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.register_state_dict_post_hook(lambda *_: None)
    return layer


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scaled": (lambda: Scaled(8, 8, 2.0), "Scaled has a forward of its own"),
    "clamped": (lambda: Clamped(8, 8), "Clamped has a forward of its own"),
    "noisy": (lambda: Noisy(8, 8), "Noisy has a forward of its own"),
    "routed": (lambda: Routed(8, 8), "Routed has a forward of its own"),
    "patched": (patched, "Linear has a forward of its own"),
    "adapted": (lambda: Adapted(8, 8), "it holds more than a weight and a bias: lora_A, lora_B"),
    "parametrized": (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), "its weight is made from other tensors"),
    "weight_norm": (lambda: weight_norm(nn.Linear(8, 8)), "its weight is made from other tensors"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 3), "its weight is made from other tensors"),
    "lazy": (lambda: nn.LazyLinear(8), "its weight is a UninitializedParameter"),
    "state hook": (with_state_hook, "it has hooks on its state dict"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", UNFIT)
def test_a_layer_that_a_sparse_one_cannot_stand_for_stays_dense_and_is_refused_by_name(kind: str) -> None:
    make, reason = UNFIT[kind]
    model = nn.Sequential(make(), nn.Linear(8, 8), nn.Linear(8, 3))
    assert default_layers(model) == ["1"]
    assert Layers(model).default()[1]["0"].startswith(reason)
    with pytest.raises(ConfigError, match=f"layer 0 can't be made sparse, because {reason}.*; add it to"):
        choose_layers(model, ["*"])
    assert list(sparsify(model, ["*"], ["0"], density=0.5)) == ["1", "2"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_subclass_that_computes_what_a_linear_layer_does_is_made_sparse(device: str) -> None:
    with torch.device(device):
        model = nn.Sequential(Written(8, 8, bias=False), Written(8, 8), Scaled(8, 8, 1.0), Scaled(8, 8, 0.5))
        model.append(nn.Linear(8, 2))
    state = torch.get_rng_state()
    assert default_layers(model) == ["0", "1", "2"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model)


def test_hooks_attributes_and_modes_are_taken_over() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    layer = model[0]
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2.0,))
    layer.register_forward_pre_hook(lambda *_: seen.append("named before"), with_kwargs=True)
    layer.register_forward_hook(lambda _module, _inputs, y: y + 1.0)
    layer.register_forward_hook(lambda *_: seen.append("named"), with_kwargs=True, always_call=True)
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.register_full_backward_pre_hook(lambda *_: seen.append("before backward"))
    handle = layer.register_forward_hook(lambda *_: seen.append("removed"))
    layer.eval()
    layer.note, layer.in_features = "mine", 4  # type: ignore[assignment]
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    sparse = sparsify(model, ["0"], density=1.0)["0"]
    assert [vars(sparse)["note"], sparse.training, model.training] == ["mine", False, True]
    handle.remove()
    seen.clear()
    y = sparse(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert seen == ["named before", "named", "before backward", "backward"]


def test_a_sparse_layer_that_took_hooks_over_can_be_copied_and_pickled() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(_plus_one)
    sparsify(model, ["0"], density=0.5)
    x = torch.randn(2, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


def _plus_one(_module: nn.Module, _inputs: object, y: Tensor) -> Tensor:
    return y + 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_frozen_stays_so_and_stays_dense_by_default(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.Linear(8, 8), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    assert model[1].bias is not None
    model[1].bias.requires_grad_(False)
    assert default_layers(model) == ["1"]
    layers = sparsify(model, ["*"], density=0.5)
    frozen = {name: not p.requires_grad for name, p in model.named_parameters()}
    assert frozen == {
        "0.values": True, **({"0.bias": True} if bias else {}),
        "1.values": False, "1.bias": True, "2.values": False, "2.bias": False,
    }  # fmt: skip
    assert isinstance(layers["0"], SparseLinear)


class Wrapped(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.other = nn.Linear(2, base.out_features, bias=False)


class Tuned(nn.Module):
    """As torchtune does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8), requires_grad=False)
        self.lora_a, self.lora_b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)


def test_the_matrices_of_adapters_stay_dense_by_default() -> None:
    model = nn.Sequential(Wrapped(nn.Linear(8, 8)), Tuned(), nn.Linear(8, 8), nn.Linear(8, 3))
    names, left = Layers(model).default()
    assert names == ["2"]
    assert left == {
        "0.base_layer": "it is frozen",
        **dict.fromkeys(
            ("0.lora_A.default", "0.other", "1.lora_a", "1.lora_b"),
            "it belongs to an adapter, whose matrices are small already",
        ),
    }


@pytest.mark.parametrize("blocks", [nn.ModuleList, lambda parts: nn.Sequential(*parts)])
def test_the_last_layer_outside_of_blocks_is_the_output_layer(blocks: Callable[[list[nn.Module]], nn.Module]) -> None:
    model = nn.Module()
    model.embed = nn.Linear(5, 8)
    model.head = nn.Linear(8, 3)
    model.blocks = blocks([nn.Sequential(nn.Linear(8, 8)) for _ in range(2)])
    assert default_layers(model) == ["embed", "blocks.0.0", "blocks.1.0"]
    assert default_layers(nn.ModuleDict({"blocks": model.blocks})) == ["blocks.0.0", "blocks.1.0"]
    assert default_layers(nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])) == ["0.0"]
    assert default_layers(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))) == ["0"]


def test_the_head_of_transformers_classifiers_stays_dense() -> None:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, BertConfig, ViTConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    for model in (
        AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=50, **sizes)),
        AutoModelForImageClassification.from_config(ViTConfig(**sizes)),
    ):
        assert "classifier" not in default_layers(model)
        assert len(default_layers(model)) >= 12
