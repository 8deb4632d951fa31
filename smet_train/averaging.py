"""Averages of weights over steps or checkpoints, of a model whose sites move. Torch alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.errors import CheckpointError, ConfigError
from smet_train.sparse.dense import scatter_dense
from smet_train.sparse.ledger import sparse_layers, trained_parameters
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import is_sharded


@dataclass(slots=True)
class _SiteAverage:
    """The average of W of one layer, at every site that was ever active while it was averaged.

    Attributes:
        sites_U: those sites (of blocks, where the layer has them), ascending; elsewhere the average is 0.
        values_U: their averages, shaped like the layer's values but for the first dimension.
        packed: the layer's index as of the latest update, by which a moved topology is seen.
        places_K: where in ``sites_U`` the active sites are, one a slot.
    """

    sites_U: Tensor
    values_U: Tensor
    packed: Tensor
    places_K: Tensor

    @staticmethod
    def of(layer: SparseLinear) -> "_SiteAverage":
        """That of the present weights alone."""
        index = layer.index.long()
        values = layer.values.detach().to(_dtype(layer.values), copy=True)
        places = torch.arange(index.numel(), device=index.device)
        return _SiteAverage(index, values, layer.packed_index.detach().clone(), places)

    def add(self, layer: SparseLinear, weight: float) -> None:
        """Take in the present weights with ``weight``; what was there keeps 1 - ``weight``."""
        self.follow(layer)
        self.values_U.mul_(1 - weight)
        self.values_U.index_add_(0, self.places_K, layer.values.detach().to(self.values_U.dtype), alpha=weight)

    def follow(self, layer: SparseLinear) -> None:
        """Make room for sites that are new, and find those that are active."""
        packed = layer.packed_index.detach()
        if self.packed.shape == packed.shape and torch.equal(self.packed, packed):
            return
        index = layer.index.long()
        union = torch.cat([self.sites_U, index]).unique()
        values = self.values_U.new_zeros(union.numel(), *self.values_U.shape[1:])
        values[torch.searchsorted(union, self.sites_U)] = self.values_U
        self.sites_U, self.values_U, self.packed = union, values, packed.clone()
        self.places_K = torch.searchsorted(union, index)


def _dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


class WeightAverage:
    """An average of the weights of ``model``: exponential (EMA), or of all alike (SWA, or of checkpoints).

    ``torch.optim.swa_utils.AveragedModel``, and all that averages parameters one by one, averages ``values`` slot by
    slot, but a topology update puts other sites into the slots. Here what is averaged is W itself, in which a site that
    is not active is 0: the average is exact at every site that was ever active, dense parameters are averaged as they
    are, and it is held in fp32 (fp64 for fp64 parameters). A sparse model has no room for sites that aren't active now:
    within :meth:`applied` it computes with the average at its own sites, and :meth:`left_out` tells what that leaves
    out. :meth:`dense_weight` has all of it. Buffers, as batch norm's statistics, are not averaged.

    Args:
        model: with :class:`SparseLinear` layers or without; before its parameters are split over processes.
        decay: what the average keeps at each update of an EMA, in [0, 1); None = all updates count alike.

    Raises:
        ConfigError: if ``decay`` is out of range, or the parameters are split over processes.
    """

    def __init__(self, model: nn.Module, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ConfigError(f"decay={decay} must be at least 0 and below 1; write for instance decay=0.999")
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise ConfigError(
                "the parameters of this model are split over processes, and each has a part of their sites; average "
                "the checkpoints afterwards, in one process"
            )
        self.model = model
        self.decay = decay
        self.updates = 0
        self._layers: dict[str, _SiteAverage] = {}
        self._dense: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights; call it after each step (and ``after_step``), or for each checkpoint
        that was loaded into the model. The first update is the average by itself."""
        self.updates += 1
        weight = 1 / self.updates if self.decay is None or self.updates == 1 else 1 - self.decay
        for name, layer in sparse_layers(self.model).items():
            if name in self._layers:
                self._layers[name].add(layer, weight)
            else:
                self._layers[name] = _SiteAverage.of(layer)
        for name, parameter in self._dense_parameters().items():
            if name in self._dense:
                self._dense[name].lerp_(parameter.detach().to(self._dense[name].dtype), weight)
            else:
                self._dense[name] = parameter.detach().to(_dtype(parameter), copy=True)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Within it, the model's weights are the averages, at the sites that are active now; afterwards they are its
        own again. Do not train or move the topology inside.

        Raises:
            ConfigError: before the first update.
        """
        self._check_begun()
        averages = [(layer.values, self._at_active(name)) for name, layer in sparse_layers(self.model).items()]
        averages += [(parameter, self._dense[name]) for name, parameter in self._dense_parameters().items()]
        own = [(parameter, parameter.detach().clone()) for parameter, _ in averages]
        try:
            _put(averages)
            yield self.model
        finally:
            _put(own)

    @torch.no_grad()
    def dense_weight(self, name: str) -> Tensor:
        """The average of W of the sparse layer ``name``, shape (O, I), at all sites.

        Raises:
            ConfigError: before the first update, or if there is no such layer.
        """
        self._check_begun()
        if name not in self._layers:
            raise ConfigError(f"there is no sparse layer {name}; there is {', '.join(self._layers) or 'none'}")
        average, layer = self._layers[name], sparse_layers(self.model)[name]
        return scatter_dense(average.values_U, average.sites_U, layer.layout)

    @torch.no_grad()
    def left_out(self) -> float:
        """Of the squares of all averages of sparse layers, the share at sites that are not active now."""
        self._check_begun()
        whole = sum(float(average.values_U.double().square().sum()) for average in self._layers.values())
        kept = sum(float(self._at_active(name).double().square().sum()) for name in self._layers)
        return max(0.0, 1 - kept / whole) if whole else 0.0

    def _at_active(self, name: str) -> Tensor:
        average = self._layers[name]
        average.follow(sparse_layers(self.model)[name])
        return average.values_U[average.places_K]

    def _dense_parameters(self) -> dict[str, nn.Parameter]:
        taken = {id(layer.values) for layer in sparse_layers(self.model).values()}
        trained = {id(parameter) for parameter in trained_parameters(self.model)} - taken
        return {name: parameter for name, parameter in self.model.named_parameters() if id(parameter) in trained}

    def _check_begun(self) -> None:
        if self.updates == 0:
            raise ConfigError("there is no average yet; call update() after a step")

    def state_dict(self) -> dict[str, Any]:
        """For ``torch.save``, beside the model's own state."""
        return {
            "decay": self.decay,
            "updates": self.updates,
            "layers": {name: (one.sites_U, one.values_U) for name, one in self._layers.items()},
            "dense": dict(self._dense),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, bit for bit, wherever the model's topology is now.

        Raises:
            CheckpointError: if it is of another model or decay.
        """
        layers, dense = sparse_layers(self.model), self._dense_parameters()
        if state["decay"] != self.decay:
            raise CheckpointError(
                f"the average was made with decay={state['decay']}, this one has {self.decay}; write "
                f"decay={state['decay']}"
            )
        if state["updates"] and (state["layers"].keys() != layers.keys() or state["dense"].keys() != dense.keys()):
            raise CheckpointError("the average is of another model; load it beside the model that it was made of")
        self.updates = state["updates"]
        self._dense = {name: average.to(dense[name].device).clone() for name, average in state["dense"].items()}
        self._layers = {name: _loaded(layers[name], *saved) for name, saved in state["layers"].items()}


@torch.no_grad()
def _put(weights: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, values in weights:
        parameter.copy_(values)


def _loaded(layer: SparseLinear, sites_U: Tensor, values_U: Tensor) -> _SiteAverage:
    device = layer.values.device
    nowhere = torch.empty(0, dtype=torch.int64, device=device)  # until the first look at the layer's index
    return _SiteAverage(sites_U.to(device).clone(), values_U.to(device).clone(), nowhere, nowhere)
