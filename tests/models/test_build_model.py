import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, MistralConfig, PreTrainedModel

from smet_train.errors import ConfigError
from smet_train.models import ModelSpec, build_model, default_projections
from smet_train.models.sparse_folder import empty_model
from smet_train.sparse import choose_layers, sparsify

LLAMA = ModelSpec("llama", hidden_size=32, intermediate_size=48, layers=2, heads=4)
GPT2 = ModelSpec("gpt2", hidden_size=32, intermediate_size=64, layers=2, heads=4, tie_embeddings=True)


def build(spec: ModelSpec, seed: int = 1) -> PreTrainedModel:
    return build_model(spec, vocab_size=100, sequence_tokens=16, eos_id=3, seed=seed)


def auto(path: Path) -> ModelSpec:
    return ModelSpec("auto", 0, 0, 0, 0, config_file=str(path))


@pytest.mark.parametrize("spec", [LLAMA, GPT2])
def test_a_seed_gives_the_same_weights_and_another_seed_others(spec: ModelSpec) -> None:
    first, again, other = build(spec), build(spec), build(spec, seed=2)
    for name, parameter in first.named_parameters():
        assert parameter.equal(again.get_parameter(name))
        assert parameter.dtype == torch.float32
    assert not first.get_input_embeddings().weight.equal(other.get_input_embeddings().weight)


def test_a_llama_has_its_seven_projections_a_layer() -> None:
    model = build(LLAMA)
    chosen = choose_layers(model, default_projections("llama", model))
    assert len(chosen) == 14
    assert "model.layers.1.self_attn.o_proj" in chosen
    assert "lm_head" not in chosen


def test_grouped_query_attention_narrows_keys_and_values() -> None:
    model = build(ModelSpec("llama", 32, 48, 2, heads=4, kv_heads=2))
    layers = sparsify(model, default_projections("llama", model), density=0.5)
    assert layers["model.layers.0.self_attn.k_proj"].out_features == 16
    assert layers["model.layers.0.self_attn.q_proj"].out_features == 32


def test_a_gpt2_is_sparse_in_its_conv1d_layers_and_keeps_its_tied_output() -> None:
    model = build(GPT2)
    layers = sparsify(model, default_projections("gpt2", model), density=0.5)
    assert [name.split("h.0.")[1] for name in layers if "h.0." in name] == [
        "attn.c_attn",
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    ]
    assert layers["transformer.h.0.attn.c_attn"].layout.shape_text == "96x32"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("spec", [LLAMA, GPT2])
def test_at_density_one_the_sparse_model_computes_what_the_dense_one_did(spec: ModelSpec) -> None:
    dense, sparse = build(spec).eval(), build(spec).eval()
    sparsify(sparse, default_projections(spec.family, sparse), density=1.0)
    tokens = torch.randint(0, 100, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(sparse(input_ids=tokens).logits, dense(input_ids=tokens).logits)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=32, n_layer=1, n_head=4),
        MistralConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
        ),
    ],
)
def test_auto_builds_any_causal_model_from_its_config_file(tmp_path: Path, config: GPT2Config | MistralConfig) -> None:
    config.save_pretrained(tmp_path)
    model = build(auto(tmp_path / "config.json"))
    assert model.config.model_type == config.model_type
    assert model.get_input_embeddings().weight.shape == (100, 32)
    chosen = choose_layers(model, default_projections("auto", model))
    assert len(chosen) == (4 if config.model_type == "gpt2" else 7)
    assert "lm_head" not in chosen


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 4},
        {"model_type": "mpt", "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 16},
        {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2, "context_length": 16},
    ],
)
def test_transformers_chooses_the_attention(tmp_path: Path, settings: dict[str, object]) -> None:
    """These have no attention by torch's scaled_dot_product_attention; read back, they are built the same way."""
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = build(auto(tmp_path / "config.json"))
    assert model.config._attn_implementation == "eager"
    assert build(LLAMA).config._attn_implementation == "sdpa"
    assert type(empty_model(json.loads(model.config.to_json_string()))) is type(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{not json", "is not JSON"),
        ("[]", 'has no "model_type"'),
        ('{"hidden_size": 3}', 'has no "model_type"'),
        ('{"model_type": "no_such_model"}', "no_such_model"),
        ('{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}', "config.json"),
        ('{"model_type": "vit"}', "cannot build a causal language model of type 'vit'"),
        (json.dumps({"model_type": "llama", "max_position_embeddings": 8}), "the model has 8 positions"),
    ],
)
def test_a_bad_config_file_is_one_clear_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build(auto(path))
    assert len(str(caught.value).splitlines()) == 1
