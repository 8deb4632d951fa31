"""Only what predicts a token from those before it is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from smet_train.errors import ConfigError
from smet_train.models import ModelSpec, build_model
from smet_train.models.causal import check_causal

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
XLNET = {"model_type": "xlnet", "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
LLAMA = {**BERT, "model_type": "llama"}


def build(folder: Path, settings: dict[str, Any]) -> PreTrainedModel:
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    spec = ModelSpec("auto", 0, 0, 0, 0, config_file=str(path))
    return build_model(spec, vocab_size=100, sequence_tokens=16, eos_id=3, seed=1)


@pytest.mark.parametrize(
    ("settings", "switch"),
    [
        (BERT, {"is_decoder": True}),
        ({**BERT, "initializer_range": 0.002}, {"is_decoder": True}),
        ({**BERT, "model_type": "megatron-bert"}, {"is_decoder": True}),
        (XLNET, {"attn_type": "uni"}),
        ({**LLAMA, "is_causal": False}, {"is_causal": True}),
    ],
)
def test_a_model_that_looks_ahead_is_refused_and_what_to_write_makes_it_causal(
    settings: dict[str, Any], switch: dict[str, Any], tmp_path: Path
) -> None:
    written = json.dumps(switch).strip("{}")
    with pytest.raises(ConfigError, match=rf"'{settings['model_type']}' is not causal .*; write {written} into it$"):
        build(tmp_path, settings)
    build(tmp_path, {**settings, **switch})


def model_of(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=100, **{key: value for key, value in LLAMA.items() if key != "model_type"}, **settings
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("zero", ["lm_head", "model.layers.0.self_attn.o_proj"])
def test_weights_that_begin_at_zero_hide_nothing(zero: str) -> None:
    """All that looks ahead is behind them: the output layer, or the one layer's attention."""
    model = model_of(is_causal=False)
    model.model.layers = model.model.layers[:1]
    model.get_submodule(zero).weight.data.zero_()
    with pytest.raises(ConfigError, match=r"is not causal .*; write \"is_causal\": true into it"):
        check_causal(model, 100, 16, "FILE")
    assert not model.get_submodule(zero).weight.any()


def test_nothing_is_left_of_the_look() -> None:
    model = model_of(attention_dropout=0.5)
    model.lm_head.weight.data.zero_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    check_causal(model, 100, 16, "FILE")
    assert torch.rand(3).equal(drawn)
    assert model.training
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_tokens_are_enough() -> None:
    check_causal(model_of(), 100, 2, "FILE")
    with pytest.raises(ConfigError, match="is not causal"):
        check_causal(model_of(is_causal=False), 100, 2, "FILE")


def test_no_other_remedy_than_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smet_train.models.causal._SWITCHES", {})
    with pytest.raises(ConfigError, match="is to predict; choose another architecture"):
        build(tmp_path, BERT)


def test_a_model_that_needs_more_than_tokens_is_refused_in_one_line(tmp_path: Path) -> None:
    """A RoBERTa finds its positions by a padding token."""
    with pytest.raises(ConfigError, match="RobertaForCausalLM can't be trained on tokens alone: ") as caught:
        build(tmp_path, {**BERT, "model_type": "roberta", "is_decoder": True})
    assert "\n" not in str(caught.value)


def test_logits_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM computes 100 logits a token, the tokenizer has 90 tokens"):
        check_causal(model_of(), 90, 16, "FILE")


def test_without_numbers_nothing_is_looked_at(tmp_path: Path) -> None:
    with torch.device("meta"):
        assert build(tmp_path, BERT).device.type == "meta"
