"""Checks that the processes of a run have the same settings and hold the same model: they never send it to each
other."""

import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from smet_train.errors import ConfigError, TrainingError
from smet_train.sparse import SparseLinear
from smet_train.sparse.shards import is_sharded
from smet_train.topology.processes import digest
from smet_train.train.processes import Processes

_NAMED = 5  # settings in an error about many


def check_same_settings(processes: Processes, settings: Mapping[str, Any]) -> None:
    """Compare ``settings``, by their dotted keys, with those of the leading process.

    Raises:
        ConfigError: in all processes, if one has others; the message names the settings and the process.
    """
    every = processes.each(lambda: (socket.gethostname(), dict(settings)))
    first = every[0][1]
    for number, (host, own) in enumerate(every):
        keys = [key for key in {**first, **own} if own.get(key, "missing") != first.get(key, "missing")]
        if keys:
            told = [f"{key}={own.get(key, 'missing')} (not {first.get(key, 'missing')})" for key in keys[:_NAMED]]
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            raise processes.alike(
                ConfigError(
                    f"process {number}, on {host}, has other settings than process 0: {', '.join(told)}{more}; start "
                    "all processes of a run by the same command, with the same YAML files and versions"
                )
            )


class SameTopology:
    """Whether all processes have chosen the same sites in an update.

    Each index is hashed when its layer is whole: afterwards, where layers are split, each process holds its part of
    what it has chosen itself. A process alone hashes nothing.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._digests: dict[str, int] = {}

    def look(self, name: str, layer: SparseLinear) -> None:
        """Note the index of a layer that has moved."""
        if self._processes.size > 1:
            self._digests[name] = digest(layer.index)

    def check(self, step: int) -> None:
        """Compare what was noted with what the leading process has noted.

        Raises:
            TrainingError: in all processes, if one has another index; the message names the layer and the process.
        """
        _check(self._processes, self._digests, f"after step {step}: layer")


def digests(model: nn.Module) -> dict[str, int]:
    """A hash of each tensor of ``model`` that is not split over processes: no two of them hold the same of others."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items() if not is_sharded(tensor)}


def check_same_start(processes: Processes, model: nn.Module, before_split: Mapping[str, int]) -> None:
    """Compare a hash of all tensors of ``model`` with that of the leading process.

    Args:
        before_split: :func:`digests` of a model that was split since then.

    Raises:
        TrainingError: in all processes, if one differs; the message names the tensor and the process.
    """
    if processes.size == 1:
        return
    held = {**before_split, **digests(model)}
    every = processes.each(lambda: sorted(held))
    for number, names in enumerate(every):
        if names != every[0]:
            other = sorted({*names} ^ {*every[0]})[0]
            whose = f"process {number}" if other in names else "process 0"
            raise processes.alike(
                TrainingError(
                    f"at the start: {whose} alone has a tensor {other}, process {number} and process 0 have other "
                    "models. The files that the settings name must be the same on all machines",
                    exit_status=1,
                )
            )
    _check(processes, dict(sorted(held.items())), "at the start: tensor")


def _check(processes: Processes, digests: Mapping[str, int], where: str) -> None:
    if processes.size == 1:
        return
    every = processes.gathered(torch.tensor(list(digests.values()), dtype=torch.int64))
    differs = (every != every[0]).nonzero().tolist()
    if differs:
        process, place = differs[0]
        raise processes.alike(
            TrainingError(
                f"{where} {list(digests)[place]} of process {process} is not that of process 0 ({len(differs)} differ "
                "in all). All processes must run the same versions of torch and smet-train and read the same files, on "
                "the same kind of machine; the same command goes on from the newest checkpoint",
                exit_status=1,
            )
        )
