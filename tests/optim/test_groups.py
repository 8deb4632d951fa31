import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from smet_train.optim.groups import lr_density_scale, parameter_groups
from smet_train.sparse import sparsify


def test_every_parameter_is_in_exactly_one_group_by_role() -> None:
    model = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6))
    layers = sparsify(model, ["1"], density=0.25)
    groups = parameter_groups(
        model,
        dict.fromkeys(layers, 0.25),
        lr_density_rule="sqrt",
        weight_decay=0.1,
        topology_moves=True,
        embedding_lr_scale=3.0,
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["role"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}
    assert found == {
        "sparse": ["1.values"],
        "embedding": ["0.weight"],
        "dense": ["3.weight"],
        "no_decay": ["1.bias", "2.weight", "2.bias", "3.bias"],
    }
    decays = {group["role"]: group["weight_decay"] for group in groups}
    assert decays == {"sparse": 0.1, "embedding": 0.1, "dense": 0.1, "no_decay": 0.0}
    assert [group.get("lr_scale") for group in groups] == [2.0, 3.0, None, None]


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_layer_of_a_transformers_model_is_with_the_embeddings(tied: bool) -> None:
    shape = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    layers = sparsify(model, ["*.mlp.*"], density=0.5)
    groups = parameter_groups(
        model, dict.fromkeys(layers, 0.5), lr_density_rule="none", weight_decay=0.0, topology_moves=True
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["role"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    assert found["embedding"] == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert found["dense"] == {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}


def test_each_density_has_a_group_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    sparsify(model, ["*"], density=0.25)
    groups = parameter_groups(
        model, {"0": 0.25, "1": 0.04, "2": 0.25}, lr_density_rule="linear", weight_decay=0.0, topology_moves=True
    )
    assert [(group["role"], group.get("lr_scale"), len(group["params"])) for group in groups] == [
        ("sparse", 4.0, 2),
        ("sparse", 25.0, 1),
        ("no_decay", None, 3),
    ]


@pytest.mark.parametrize(("rule", "scale"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_density_rules(rule: str, scale: float) -> None:
    assert lr_density_scale(rule, 0.25) == scale


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(KeyError):
        lr_density_scale("cubic", 0.25)
