"""Trained weights in a folder, and how a model takes them over: dense ones tensor by tensor, sparse ones with their
sites."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from smet_train.errors import ConfigError, LayoutError
from smet_train.models.architecture import first_difference
from smet_train.models.stored import StoredTensors, damaged
from smet_train.sparse import Layout
from smet_train.sparse.convert import weight_OI
from smet_train.sparse.dense import scatter_dense

# Constants that earlier versions of transformers stored beside the weights.
_CONSTANTS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")
_LISTED = 3

ReadIndex = Callable[[StoredTensors, str, Layout], Tensor]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Weights that a run begins from.

    Attributes:
        name: the folder, for messages.
        tensors: what it holds.
        config: the transformers configuration that they were trained under; None if it can't be found any more.
        remedy: what to write so that the model fits them.
        sparse: the name of the stored index of each layer that is sparse there. Its values are ``<layer>.values``.
        read_index: the sites that are stored under a name, of a layout.
    """

    name: str
    tensors: StoredTensors
    config: Any
    remedy: str
    sparse: Mapping[str, str]
    read_index: ReadIndex

    def check(self, model: PreTrainedModel) -> None:
        """See that the model has these tensors, in these shapes, and computes with them what it did there.

        Raises:
            ConfigError: naming the first tensor or the first setting that differs.
        """
        used: set[str] = set()
        for names, tensor in _parameters(model):
            stored = self._stored(model, names)
            if not stored:
                raise self._missing(names[0])
            used.update(stored)
            is_sparse = names[0].removesuffix(".weight") in self.sparse
            there, here = self.tensors.shape(stored[0]), tuple(tensor.shape)
            if not is_sparse and there != here:
                raise self._other_shape(model, names, there, here)
        for name in self.tensors.names:
            if name not in used and not _CONSTANTS.search(name):
                raise ConfigError(
                    f"model.init_from={self.name}: {name} is there, and the model has no such tensor; {self.remedy}"
                )
        found = None if self.config is None else first_difference(self.config, model.config)
        if found is not None:
            key, there, here = found
            raise ConfigError(
                f"model.init_from={self.name}: its {key} is {there}, the model's is {here}, so that the same weights "
                f"would compute something else; {self.remedy}"
            )

    @torch.no_grad()
    def fill(self, model: PreTrainedModel) -> None:
        """Give the dense ``model`` these weights, one tensor at a time; zero where a sparse layer had no value.

        Raises:
            ConfigError: as :meth:`check`; also if a tensor is damaged or holds a number that is not finite.
        """
        self.check(model)
        for names, tensor in _parameters(model):
            layer = names[0].removesuffix(".weight")
            if layer in self.sparse:
                weight = weight_OI(model.get_submodule(layer))
                layout, index_K = self.sites(layer, (weight.shape[0], weight.shape[1]))
                values = self._finite(f"{layer}.values")
                weight.copy_(scatter_dense(values, index_K, layout))
            else:
                tensor.copy_(self._finite(self._stored(model, names)[0]))

    def sites(self, layer: str, shape: tuple[int, int]) -> tuple[Layout, Tensor]:
        """Layout and sites of a layer of shape (O, I) that is sparse there.

        Raises:
            ConfigError: if they are not those of a layer of that shape.
        """
        values_shape = self.tensors.shape(f"{layer}.values")
        try:
            layout = Layout(*shape, values_shape[0], values_shape[1] if len(values_shape) == 3 else 1)
            index_K = self.read_index(self.tensors, self.sparse[layer], layout)
            layout.validate_index(index_K)
        except (LayoutError, RuntimeError) as error:
            raise ConfigError(
                f"model.init_from={self.name}: the sites of {layer} are not those of a layer of {shape[0]}x{shape[1]} "
                f"({error}); {self.remedy}"
            ) from error
        return layout, index_K

    def _stored(self, model: PreTrainedModel, names: list[str]) -> list[str]:
        """The stored tensors that are a parameter of these names, the one that it is read from first."""
        layer = names[0].removesuffix(".weight")
        if layer in self.sparse:
            parts = [f"{layer}.values", self.sparse[layer]]
            return parts if all(name in self.tensors for name in parts) else []
        prefix = f"{model.base_model_prefix}."
        # Some folders hold the model without its output layer, under names that begin inside it.
        spelled = [spelling for name in names for spelling in (name, name.removeprefix(prefix))]
        return [name for name in dict.fromkeys(spelled) if name in self.tensors]

    def _finite(self, name: str) -> Tensor:
        tensor = self.tensors.read(name)
        if not bool(tensor.isfinite().all()):
            raise damaged(self.tensors.folder, ValueError(f"{name} holds NaN or infinite numbers"))
        return tensor

    def _missing(self, name: str) -> ConfigError:
        some = ", ".join(self.tensors.names[:_LISTED])
        return ConfigError(
            f"model.init_from={self.name}: the model's {name} is not there (it has {some}, …); {self.remedy}"
        )

    def _other_shape(
        self, model: PreTrainedModel, names: list[str], there: tuple[int, ...], here: tuple[int, ...]
    ) -> ConfigError:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        is_vocabulary = any(model.get_submodule(name.rpartition(".")[0]) in ends for name in names)
        differ = f"model.init_from={self.name}: {names[0]} is {there} there and {here} here"
        if is_vocabulary and there[1:] == here[1:]:
            return ConfigError(
                f"{differ}: the tokenizer has {here[0]} tokens; write data.tokenizer.file= the one that these weights "
                f"were trained with, or, if the further rows are padding, cut them off with transformers: "
                f"model.resize_token_embeddings({here[0]})"
            )
        return ConfigError(f"{differ}; {self.remedy}")


def _parameters(model: PreTrainedModel) -> list[tuple[list[str], Tensor]]:
    """Parameters and persistent buffers, each with all names that it has: a tied one has several."""
    groups: dict[tuple[int, torch.Size], tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict().items():
        names, _ = groups.setdefault((tensor.data_ptr(), tensor.shape), ([], tensor))
        names.append(name)
    return list(groups.values())
