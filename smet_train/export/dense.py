"""What the model would be if nothing in it were sparse: its class, its names, its weights."""

import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from smet_train.sparse.convert import is_conv1d
from smet_train.sparse.ledger import sparse_layers


def dense_model(model: nn.Module) -> PreTrainedModel:
    """The same architecture with transformers' own layers throughout, on the meta device: names and classes alone."""
    with torch.device("meta"):
        dense: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    return dense


def transposed_layers(model: nn.Module) -> frozenset[str]:
    """Names of the sparse layers whose dense weight transformers stores as (in, out): GPT-2's ``Conv1D``."""
    dense = dense_model(model)
    return frozenset(name for name in sparse_layers(model) if is_conv1d(dense.get_submodule(name)))


def dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of ``model`` by the name and in the shape that transformers gives it, in the dtype it is held in.

    What is dense shares memory with the model, a tied weight under both its names.
    """
    transposed = transposed_layers(model)
    tensors = dict(model.state_dict())
    for name, layer in sparse_layers(model).items():
        del tensors[f"{name}.values"], tensors[f"{name}.packed_index"]
        weight_OI = layer.to_dense()
        tensors[f"{name}.weight"] = (weight_OI.t() if name in transposed else weight_OI).contiguous()
    return tensors


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """Content of the transformers ``config.json`` of ``model``, its class and the dtype of its parameters included."""
    config: Any = model.config
    settings: dict[str, Any] = json.loads(config.to_json_string())
    return settings | {"architectures": [type(model).__name__], "dtype": str(value_dtype(model)).removeprefix("torch.")}


def value_dtype(model: nn.Module) -> torch.dtype:
    """In which its parameters are held; all are alike."""
    return next(model.parameters()).dtype
