"""Weights that transformers' save_pretrained has written are taken over exactly, or refused with what to write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedModel

from smet_train.errors import ConfigError
from smet_train.models import ModelSpec, Pretrained, build_model
from smet_train.models.architecture import first_difference, settings_of
from smet_train.models.stored import stored_tensors

LLAMA = ModelSpec("llama", hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2)
GPT2 = ModelSpec("gpt2", hidden_size=32, intermediate_size=64, layers=2, heads=4)
SPECS = {
    "llama": LLAMA,
    "llama tied": ModelSpec("llama", 32, 48, 2, 4, tie_embeddings=True),
    "gpt2": GPT2,
    "gpt2 tied": ModelSpec("gpt2", 32, 64, 2, 4, tie_embeddings=True),
}


def build(spec: ModelSpec, seed: int = 1, vocab_size: int = 100) -> PreTrainedModel:
    return build_model(spec, vocab_size=vocab_size, sequence_tokens=16, eos_id=3, seed=seed).eval()


def never(*_: Any) -> Tensor:
    raise AssertionError


def opened(folder: Path, config: Any = None) -> Pretrained:
    return Pretrained("FOLDER", stored_tensors(folder), config, "write THIS", {}, never)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=torch.arange(32).view(2, 16)).logits
    return result


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_logits_are_those_of_the_source(name: str, shard_size: str, tmp_path: Path) -> None:
    source, model = build(SPECS[name]), build(SPECS[name], seed=2)
    source.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    assert not logits(model).equal(logits(source))
    opened(tmp_path, source.config).fill(model)
    assert logits(model).equal(logits(source))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert logits(again).equal(logits(source))


def test_lower_precision_is_read_into_fp32(tmp_path: Path) -> None:
    source, model = build(LLAMA).bfloat16(), build(LLAMA, seed=2)
    source.save_pretrained(tmp_path)
    opened(tmp_path).fill(model)
    assert all(
        tensor.dtype == torch.float32 and tensor.equal(source.get_parameter(name).float())
        for name, tensor in model.named_parameters()
    )


def test_names_that_begin_inside_the_model_and_stored_constants_are_known(tmp_path: Path) -> None:
    """As in the folder of the first GPT-2."""
    source, model = build(SPECS["gpt2 tied"]), build(SPECS["gpt2 tied"], seed=2)
    source.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, path)
    opened(tmp_path).fill(model)
    assert logits(model).equal(logits(source))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            ModelSpec("llama", 64, 48, 2, 4, 2),
            r"embed_tokens.weight is \(100, 32\) there and \(100, 64\) here; wr",
        ),
        (ModelSpec("llama", 32, 40, 2, 4, 2), r"layers.0.mlp.gate_proj.weight is \(48, 32\) there and \(40, 32\) here"),
        (ModelSpec("llama", 32, 48, 3, 4, 2), r"the model's model.layers.2.* is not there \(it has lm_head.weight, "),
        (
            ModelSpec("llama", 32, 48, 1, 4, 2),
            r"layers.1.* is there, and the model has no such tensor; write THIS",
        ),
        (
            ModelSpec("llama", 32, 48, 2, 2, 1),
            r"its num_attention_heads is 4, the model's is 2, so that",
        ),
        (GPT2, r"the model's transformer.wte.weight is not there"),
    ],
)
def test_what_differs_is_named(spec: ModelSpec, message: str, tmp_path: Path) -> None:
    source = build(LLAMA)
    source.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, source.config).fill(build(spec))


@pytest.mark.parametrize("name", ["llama", "gpt2 tied"])
def test_another_vocabulary_is_told_apart_from_another_shape(name: str, tmp_path: Path) -> None:
    build(SPECS[name]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"\(100, 32\) there and \(90, 32\) here: the tokenizer has 90 tokens; write"):
        opened(tmp_path).fill(build(SPECS[name], vocab_size=90))


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    source = build(LLAMA)
    with torch.no_grad():
        source.get_parameter("model.norm.weight")[3] = float("nan")
    source.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model.norm.weight holds NaN or infinite numbers"):
        opened(tmp_path).fill(build(LLAMA))


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    build(LLAMA).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    with pytest.raises(ConfigError, match=rf"{shards[1].name} can't be read"):
        opened(tmp_path).fill(build(LLAMA))
    shards[1].unlink()
    with pytest.raises(ConfigError, match=rf"{shards[1].name} can't be read"):
        opened(tmp_path).fill(build(LLAMA))
    index.write_text("{}")
    with pytest.raises(ConfigError, match=r"index.json can't be read \(it has no weight_map\)"):
        stored_tensors(tmp_path)
    index.write_text("[")
    with pytest.raises(ConfigError, match=r"index.json can't be read"):
        stored_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"model.safetensors can't be read"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("name", list(SPECS))
def test_the_settings_of_what_we_build_are_found(name: str) -> None:
    spec = SPECS[name]
    found = settings_of(build(spec).config)
    assert found is not None
    assert found.pop("kv_heads", None) == (spec.kv_heads or spec.heads if spec.family == "llama" else None)
    assert all(value == getattr(spec, key) for key, value in found.items())
    assert first_difference(build(spec).config, build(spec, vocab_size=50).config) is None


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LlamaConfig(hidden_size=32, num_attention_heads=4, rms_norm_eps=1e-3), "rms_norm_eps"),
        (
            LlamaConfig(hidden_size=32, num_attention_heads=4, attention_bias=True),
            "attention_bias",
        ),
        (
            LlamaConfig(
                hidden_size=32, num_attention_heads=4, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}
            ),
            "rope_parameters",
        ),
        (GPT2Config(n_embd=32, n_head=4, activation_function="relu"), "activation_function"),
        (MistralConfig(), "model_type"),
    ],
)
def test_what_only_a_config_file_can_tell(config: Any, name: str) -> None:
    assert settings_of(config) is None
    ours = build(GPT2 if config.model_type == "gpt2" else LLAMA).config
    if config.model_type == ours.model_type:
        plain = type(config)(**{**config.to_dict(), name: getattr(type(config)(), name)})
        assert first_difference(config, plain) == (name, getattr(config, name), getattr(plain, name))
    else:
        assert first_difference(config, ours) == ("model_type", "mistral", "llama")


def test_another_number_of_positions_needs_the_config_file() -> None:
    assert settings_of(GPT2Config(n_embd=32, n_head=4, n_positions=512)) is None
    found = settings_of(GPT2Config(n_embd=32, n_head=4))
    assert found is not None
    assert found["intermediate_size"] == 128


def test_remarks_of_others_in_a_config_do_not_matter(tmp_path: Path) -> None:
    source = build(LLAMA)
    source.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings.pop("model_type")
    remarked = LlamaConfig(**{**settings, "made_by": "someone", "torch_dtype": "bfloat16"})
    assert first_difference(remarked, source.config) is None
