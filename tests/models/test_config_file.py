"""Of a config.json: what training does not use is left out and told; of what reads more, the text alone is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, LlavaConfig, MllamaConfig, PreTrainedModel

from smet_train.errors import ConfigError
from smet_train.models import ModelSpec, build_model, left_out
from smet_train.models.sparse_folder import empty_model

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA = {"model_type": "llama", **SHAPE}
TEXT = {**SHAPE, "vocab_size": 500, "head_dim": 8}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(folder: Path, settings: dict[str, Any]) -> tuple[PreTrainedModel, tuple[str, ...]]:
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    spec = ModelSpec("auto", 0, 0, 0, 0, config_file=str(path))
    return build_model(spec, vocab_size=100, sequence_tokens=16, eos_id=3, seed=1), left_out(spec)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "left out    quantization_config of the config.json: w"),
        ({"compression_config": {"format": "dense"}}, "left out    compression_config of the config.json: w"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Other"}}, None),  # which the log tells
        ({"return_dict": False, "output_attentions": True}, None),
    ],
)
def test_what_training_does_not_use_is_not_exported_either(
    more: dict[str, Any], told: str | None, tmp_path: Path
) -> None:
    model, remarks = build(tmp_path, {**LLAMA, **more})
    assert [remark.startswith(str(told)) for remark in remarks] == ([] if told is None else [True])
    plain, _ = build(tmp_path, LLAMA)
    assert model.config.to_json_string() == plain.config.to_json_string()
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(16)[None]
    assert again(tokens).logits.equal(model.eval()(tokens).logits)


def test_folders_that_kept_it_are_read_as_they_were_trained() -> None:
    """As earlier versions wrote them."""
    settings = {**LLAMA, "vocab_size": 100, "quantization_config": {"quant_method": "fp8"}}
    assert not hasattr(empty_model(settings).config, "quantization_config")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (Gemma3Config(text_config=TEXT, vision_config={**VISION, "image_size": 28, "patch_size": 14}), "gemma3_text"),
        (LlavaConfig(text_config={"model_type": "llama", **TEXT}, vision_config=VISION), "llama"),
    ],
)
def test_of_what_reads_more_the_text_model_is_trained(config: Any, text: str, tmp_path: Path) -> None:
    model, remarks = build(tmp_path, json.loads(config.to_json_string()))
    assert remarks == (f"text alone  of '{config.model_type}' its language model '{text}' is trained",)
    assert (model.config.model_type, model.config.vocab_size) == (text, 100)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (100, 32)
    assert not any("vision" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == 100


def test_a_text_model_that_is_none_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mllama' reads more than text, and transformers has no language model of "):
        build(tmp_path, json.loads(MllamaConfig().to_json_string()))


def test_numbers_that_json_can_not_hold_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    settings = {"model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8}
    settings |= {"n_groups": 1, "chunk_size": 8, "state_size": 8, "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    model, _ = build(tmp_path, settings)
    assert list(model.config.time_step_limit) == [0.0, float("inf")]
    assert type(empty_model(json.loads(model.config.to_json_string()))) is type(model)
