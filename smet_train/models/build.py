"""Language models from transformers, built from a configuration and randomly initialised; nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from smet_train import opening
from smet_train.errors import ConfigError
from smet_train.models.architecture import without_code
from smet_train.models.causal import check_causal
from smet_train.models.config_file import Architecture, read_architecture

_POSITIONS = 1024  # smallest position range of a built model, so that it can be used on texts longer than it saw


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is needed to build a model; ``config_file`` is used by ``family="auto"`` alone, the shape by the others."""

    family: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int | None = None
    dropout: float = 0.0
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    config_file: str | None = None


def _llama(spec: ModelSpec, vocab_size: int, sequence_tokens: int, eos_id: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads or spec.heads,
        max_position_embeddings=max(_POSITIONS, sequence_tokens),
        attention_dropout=spec.dropout,
        tie_word_embeddings=spec.tie_embeddings,
        initializer_range=spec.initializer_range,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )


def _gpt2(spec: ModelSpec, vocab_size: int, sequence_tokens: int, eos_id: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=spec.hidden_size,
        n_inner=spec.intermediate_size,
        n_layer=spec.layers,
        n_head=spec.heads,
        n_positions=max(_POSITIONS, sequence_tokens),
        resid_pdrop=spec.dropout,
        embd_pdrop=spec.dropout,
        attn_pdrop=spec.dropout,
        tie_word_embeddings=spec.tie_embeddings,
        initializer_range=spec.initializer_range,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )


def _settings_of(path_text: str | None) -> tuple[Path, dict[str, Any]]:
    """A config.json and what it says."""
    path = Path(path_text or "")
    try:
        settings = opening.read_json(path)
    except OSError as error:
        raise ConfigError(
            f"model.config_file={path}: cannot be read ({error.strerror}); give the path of a transformers config.json"
        ) from error
    except ValueError as error:
        raise ConfigError(f"model.config_file={path}: is not JSON ({error})") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ConfigError(
            f'model.config_file={path}: has no "model_type"; give a config.json that transformers wrote, or add '
            'one, for instance "model_type": "llama"'
        )
    return path, settings


def _from_file(path_text: str | None, vocab_size: int, sequence_tokens: int, eos_id: int) -> Architecture:
    path, settings = _settings_of(path_text)
    settings = without_code(settings, f"model.config_file={path}")
    try:
        architecture = read_architecture(
            settings, vocab_size=vocab_size, bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=None
        )
    except Exception as error:
        # Every architecture checks its settings in its own way, with its own exception types.
        raise ConfigError(f"model.config_file={path}: {_first_line(error)}") from error
    positions = getattr(architecture.config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < sequence_tokens:  # XLNet says -1 for any number
        raise ConfigError(
            f"model.config_file={path}: the model has {positions} positions, data.sequence_tokens is "
            f"{sequence_tokens}; write data.sequence_tokens={positions} or less"
        )
    return architecture


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def transformers_config(spec: ModelSpec, *, vocab_size: int, sequence_tokens: int, eos_id: int) -> Any:
    """The configuration that transformers builds the model of ``spec`` from.

    Raises:
        ConfigError: if the config file can't be read or describes no model of transformers.
    """
    if spec.family == "llama":
        return _llama(spec, vocab_size, sequence_tokens, eos_id)
    if spec.family == "gpt2":
        return _gpt2(spec, vocab_size, sequence_tokens, eos_id)
    return _from_file(spec.config_file, vocab_size, sequence_tokens, eos_id).config


def left_out(spec: ModelSpec) -> tuple[str, ...]:
    """A line for each thing that ``spec.config_file``, of which a model was built, says and that was left out."""
    return () if spec.family != "auto" else read_architecture(_settings_of(spec.config_file)[1]).remarks


def build_model(spec: ModelSpec, *, vocab_size: int, sequence_tokens: int, eos_id: int, seed: int) -> PreTrainedModel:
    """A causal language model with fp32 weights drawn from ``seed``, on the CPU or without numbers (meta).

    Whether an architecture of a config file is causal is looked at; without numbers it can't be.

    Args:
        vocab_size: rows of the embedding; the tokenizer's vocabulary, also for a config file that says otherwise.
        sequence_tokens: longest sequence that it will be trained on.
        eos_id: id of the end-of-text token.

    Raises:
        ConfigError: if the config file can't be read, if transformers can't build a language model from it, or if that
            is not causal.
    """
    config = transformers_config(spec, vocab_size=vocab_size, sequence_tokens=sequence_tokens, eos_id=eos_id)
    torch.manual_seed(seed)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its remarks are about generation and pre-trained weights
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            f"model.family={spec.family}: transformers cannot build a causal language model of type "
            f"'{config.model_type}': {_first_line(error)}"
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
    model = model.float()
    if spec.family == "auto" and model.device.type != "meta":
        check_causal(model, vocab_size, sequence_tokens, f"model.config_file={spec.config_file}")
    return model


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the input of each block in the forward pass, and compute the rest of it again in the backward pass.

    Raises:
        ConfigError: if transformers can't do so for this architecture.
    """
    try:
        # The name that later releases of transformers give it, and the one of the others.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(f"train.activation_checkpointing=true: {_first_line(error)}; write false") from error
