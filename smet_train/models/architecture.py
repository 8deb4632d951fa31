"""Whether two transformers configurations compute the same function of the same weights, and how to ask for one."""

from typing import Any

from transformers import GPT2Config, LlamaConfig

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
