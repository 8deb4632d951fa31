"""The names of linear layers that are known before a model is built are those that it then has."""

import pytest
import torch

from smet_train.errors import ConfigError
from smet_train.layer_names import check_density_patterns, chosen_names, names_of
from smet_train.models import ModelSpec, build_model, default_projections
from smet_train.sparse import choose_layers, linear_layer_names


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_they_are_those_of_the_built_model(family: str, tied: bool) -> None:
    spec = ModelSpec(family, 16, 32, layers=11, heads=2, tie_embeddings=tied)  # 11: "10" comes after "9", not "1"
    with torch.device("meta"):
        model = build_model(spec, vocab_size=32, sequence_tokens=8, eos_id=0, seed=1)
    names = names_of(family, 11)
    assert names == linear_layer_names(model)
    patterns = default_projections(family, model)
    assert chosen_names(names, patterns, []) == choose_layers(model, patterns) == names[:-1]


def test_of_other_families_only_the_model_can_tell() -> None:
    assert names_of("auto", 2) is None


def test_a_pattern_that_matches_nothing_is_told_with_names_like_it() -> None:
    names = names_of("gpt2", 1)
    assert names is not None
    with pytest.raises(ConfigError, match=r"sparsity\.include: the pattern '\*\.c_fcc' matches none of the 5 linear"):
        chosen_names(names, ["*.c_fcc"], [])
    with pytest.raises(ConfigError, match="leaves no layer"):
        chosen_names(names, ["*.c_fc"], ["*.mlp.*"])
    with pytest.raises(ConfigError, match=r"'\*\.c_fc' matches none of the 1 sparse layers; they are named like a"):
        check_density_patterns(["a"], ["*.c_fc"])
