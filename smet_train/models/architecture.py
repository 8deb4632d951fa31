"""Whether two transformers configurations compute the same function of the same weights, and how to ask for one."""

import logging
from collections.abc import Iterator
from typing import Any

from transformers import GPT2Config, LlamaConfig

from smet_train.errors import ConfigError

log = logging.getLogger(__name__)

# Settings of a config.json that have transformers import code that lies beside it, or fetch kernels that are run.
_NAMES_CODE = ("auto_map", "custom_generate", "kernel_config", "hub_kernels", "trust_remote_code")
_NAMES_CODE_WITH_SLASH = ("attn_implementation", "experts_implementation")
# Settings that say how many modules are built, and the most that they may say.
_COUNTS = ("layer", "layers", "blocks", "experts")
_LARGEST_COUNT = 10_000

# What a configuration of transformers may say without changing what a forward pass in training computes, dropout apart.
_NO_MATTER = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "max_position_embeddings",
    "n_positions",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
_SETTINGS: dict[str, dict[str, str]] = {
    "llama": {
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "tie_word_embeddings": "tie_embeddings",
    },
    "gpt2": {
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "n_layer": "layers",
        "n_head": "heads",
        "tie_word_embeddings": "tie_embeddings",
    },
}
_BUILT = {"llama": LlamaConfig, "gpt2": GPT2Config}
_POSITIONS = {"gpt2": 1024}  # a learned table, which model.family=gpt2 gives this size


def without_code(settings: dict[str, Any], told: str) -> dict[str, Any]:
    """``settings`` of a config.json, at all depths, without what names code: transformers' own classes are built.

    Args:
        told: which file; a line of the log names it and what was left out.

    Raises:
        ConfigError: if a model of these settings would have more than 10,000 layers or experts.
    """
    left_out: set[str] = set()
    kept = _without_code(settings, left_out)
    if left_out:
        named = ", ".join(sorted(left_out))
        log.warning("%s names code (%s), which is never run; transformers' own class is built", told, named)
    largest = max(_counts(kept), default=("", 0), key=lambda count: count[1])
    if largest[1] > _LARGEST_COUNT:
        raise ConfigError(f"{told}: {largest[0]} is {largest[1]}, {_LARGEST_COUNT} is the most; write a smaller number")
    return kept


def _without_code(value: Any, left_out: set[str]) -> Any:
    if isinstance(value, list):
        return [_without_code(item, left_out) for item in value]
    if not isinstance(value, dict):
        return value
    named = {key for key, item in value.items() if _names_code(key, item)}
    left_out |= named
    return {key: _without_code(item, left_out) for key, item in value.items() if key not in named}


def _names_code(key: str, value: Any) -> bool:
    if key.strip("_").removesuffix("_internal") in _NAMES_CODE_WITH_SLASH:
        return not isinstance(value, str) or "/" in value or ":" in value
    return key in _NAMES_CODE


def _counts(value: Any) -> Iterator[tuple[str, int]]:
    """What says how many modules there are, at all depths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, int) and str(key).startswith(("n_", "num_")) and str(key).endswith(_COUNTS):
            yield str(key), item
        yield from _counts(item)


def computing(config: Any) -> dict[str, Any]:
    """What in a transformers configuration decides what its model computes."""
    known = type(config)().to_dict()  # others' remarks in a config.json are not read by the model
    said = {
        name: value
        for name, value in config.to_dict().items()
        if name in known and name not in _NO_MATTER and not name.startswith("summary_")
    }
    if config.model_type == "gpt2" and said["n_inner"] is None:
        said["n_inner"] = 4 * said["n_embd"]
    if config.model_type == "llama" and said["head_dim"] == said["hidden_size"] // said["num_attention_heads"]:
        del said["head_dim"]
    return said


def first_difference(there: Any, here: Any) -> tuple[str, Any, Any] | None:
    """(name, value there, value here) of what lets two configurations compute differently; None if nothing does."""
    if there.model_type != here.model_type:
        return "model_type", there.model_type, here.model_type
    old, new = computing(there), computing(here)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            return name, old.get(name), new.get(name)
    return None


def settings_of(config: Any) -> dict[str, Any] | None:
    """The settings ``model.*`` that build what ``config`` describes; None if only its config.json can tell."""
    family = str(config.model_type)
    if family not in _SETTINGS:
        return None
    said = computing(config)
    plain = _BUILT[family](**{name: said[name] for name in _SETTINGS[family]})
    positions = getattr(config, "n_positions", None)
    if first_difference(config, plain) is not None or positions != _POSITIONS.get(family, positions):
        return None
    return {"family": family} | {setting: said[name] for name, setting in _SETTINGS[family].items()}
