"""Which linear layers a sparse one can stand in for, which ones do so by default, and why not the others."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from smet_train.sparse.torch_transformer import reads_weight_itself

_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")
_PLAIN = frozenset(vars(nn.Linear(1, 1)))
_OF_LINEAR = frozenset({"weight", "bias"})
_TOKENS = 3
_LARGE = 1e4  # what is clamped shows


def is_conv1d(module: nn.Module) -> bool:
    """transformers' ``Conv1D`` (GPT-2) is a linear layer that stores W transposed, as (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def linear_layer_names(model: nn.Module) -> list[str]:
    """Names of all linear layers: ``nn.Linear``, what is derived from it, and transformers' ``Conv1D``."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or is_conv1d(module)]


def attributes_of_its_own(module: nn.Module) -> dict[str, Any]:
    """What ``module`` holds beside what every ``nn.Linear`` does."""
    return {key: held for key, held in vars(module).items() if key not in _PLAIN}


class Layers:
    """The linear layers of ``model``, as they are asked about by name.

    Attributes:
        names: of all of them, in model order.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._owners.setdefault(id(parameter), []).append(name)
        self._tried: dict[Any, bool] = {}
        self.names = linear_layer_names(model)

    def unfit(self, name: str) -> str | None:
        """Why layer ``name`` can't be made sparse, and what to do; None if it can."""
        module = self._model.get_submodule(name)
        if reads_weight_itself(self._model, name):
            return "nn.MultiheadAttention reads its weight without calling it; add '*.out_proj' to sparsity.exclude"
        reason = self._of_its_own(module)
        if reason is not None:
            return f"{reason}; add it to sparsity.exclude"
        shared = self._owners[id(module.weight)]
        if len(shared) > 1:
            return (
                f"it shares its weight ({' = '.join(shared)}); add it to sparsity.exclude or set "
                "model.tie_embeddings=false"
            )
        return None

    def _of_its_own(self, module: nn.Module) -> str | None:
        """What a sparse layer in the place of ``module`` would lose; None if nothing."""
        weight = module._parameters.get("weight")
        if weight is None:
            return "its weight is made from other tensors (a parametrization, weight_norm, pruning)"
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            return f"its weight is a {type(weight).__name__} of {weight.dtype}, no plain parameter"
        held = {*module._parameters, *module._buffers, *module._modules}
        if held - _OF_LINEAR:
            return f"it holds more than a weight and a bias: {', '.join(sorted(held - _OF_LINEAR))}"
        if any(getattr(module, hooks) for hooks in _STATE_HOOKS):
            return "it has hooks on its state dict, which look for a weight"
        if not self._multiplies(module):
            return f"{type(module).__name__} has a forward of its own, which computes something else than nn.Linear"
        return None

    def _multiplies(self, module: nn.Module) -> bool:
        """Whether ``module`` computes x W^T + b: its class tells, or a trial, one for layers that are alike."""
        kind = type(module)
        plain = kind.forward is nn.Linear.forward or is_conv1d(module)
        if plain and kind.__call__ is nn.Module.__call__ and "forward" not in vars(module):
            return True
        if is_conv1d(module):
            return False
        own = sorted((key, repr(held)) for key, held in attributes_of_its_own(module).items())
        alike = kind, module.in_features, module.out_features, module.bias is None, str(own)
        if alike not in self._tried:
            self._tried[alike] = _multiplies_in_a_trial(module)
        return self._tried[alike]

    def default(self) -> tuple[list[str], dict[str, str]]:
        """The layers to make sparse where the user names none, in model order; and others that one might expect among
        them, with the reason: neither the output layer nor layers that share a weight."""
        output = self._output()
        chosen, left = [], {}
        for name in self.names:
            module = self._model.get_submodule(name)
            weight = module._parameters.get("weight")
            if module is output or (weight is not None and len(self._owners[id(weight)]) > 1):
                continue
            reason = self.unfit(name) or self._not_by_default(name, module)
            if reason is None:
                chosen.append(name)
            else:
                left[name] = reason.partition(";")[0]
        return chosen, left

    def _not_by_default(self, name: str, module: nn.Module) -> str | None:
        """Why a layer is made sparse only if it is named."""
        if isinstance(module.weight, Tensor) and not module.weight.requires_grad:
            return "it is frozen"
        parts = name.split(".")
        above = (".".join(parts[:length]) for length in range(len(parts)))
        if any(part.startswith("lora") for part in parts) or any(
            hasattr(self._model.get_submodule(parent), "base_layer") for parent in above
        ):
            return "it belongs to an adapter, whose matrices are small already"
        return None

    def _output(self) -> nn.Module | None:
        """What ``get_output_embeddings`` says; else the last linear layer outside of blocks that repeat."""
        get_output = getattr(self._model, "get_output_embeddings", None)
        output = get_output() if callable(get_output) else None
        if isinstance(output, nn.Module):
            return output
        outside = [name for name in self.names if not self._in_blocks(name)]
        return self._model.get_submodule(outside[-1]) if outside else None

    def _in_blocks(self, name: str) -> bool:
        kind = _kind(name)
        inside = any(isinstance(self._model.get_submodule(parent), nn.ModuleList) for parent in _above_blocks(name))
        return inside or sum(_kind(other) == kind for other in self.names) > 1


def _kind(name: str) -> str:
    """The name with its blocks' numbers left out; a number at the end is the layer's own."""
    parent, dot, leaf = name.rpartition(".")
    return re.sub(r"\d+", "*", parent) + dot + leaf


def _above_blocks(name: str) -> Sequence[str]:
    """The modules above the one that holds layer ``name``."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1)]


def _multiplies_in_a_trial(module: nn.Module) -> bool:
    """Whether ``module`` gives x W^T + b for weights and inputs that are made up, in training and in evaluation."""
    assert isinstance(module, nn.Linear)
    rows, columns = module.out_features, module.in_features
    training = module.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        made = {"weight": torch.randn(rows, columns), "bias": None if module.bias is None else torch.randn(rows)}
        x_NI = torch.randn(2, _TOKENS, columns)
        x_NI[1] *= _LARGE
        expected = F.linear(x_NI, **made)
        given = {name: tensor for name, tensor in made.items() if tensor is not None}
        try:
            for module.training in (True, False):
                y_NO = functional_call(module, given, (x_NI,))
                if y_NO.shape != expected.shape or not torch.allclose(y_NO, expected, rtol=1e-3, atol=1e-3):
                    return False
        except Exception:  # whatever it needs beside an input, a sparse layer would not give it that
            return False
        finally:
            module.training = training
    return True
