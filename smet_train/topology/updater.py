"""The topology of a whole model over a run: when a step is due, drop and grow in every sparse layer."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.sampling import stream_key
from smet_train.topology.apply import apply_move, check_moved
from smet_train.topology.move import make_move
from smet_train.topology.schedule import TopologySchedule
from smet_train.topology.scores import magnitude
from smet_train.topology.select import grow_random, keep_highest

log = logging.getLogger(__name__)


class TopologyUpdater:
    """Moves the topology of ``layers`` by ``schedule``; ``schedule=None`` never moves it.

    Each layer drops its floor(zeta * K) active weights of least magnitude and grows as many at random inactive sites,
    so that K never changes (SMET, section 3). The sites are a function of (seed, layer name, step).
    """

    def __init__(
        self,
        layers: Mapping[str, SparseLinear],
        optimizer: torch.optim.Optimizer,
        schedule: TopologySchedule | None,
        seed: int,
        *,
        check_invariants: bool = False,
    ) -> None:
        self.layers = layers
        self.optimizer = optimizer
        self.schedule = schedule
        self.seed = seed
        self.check_invariants = check_invariants
        self.last_step = 0
        self._warned: set[str] = set()

    def due(self, step: int) -> bool:
        """Whether the topology must move after ``step`` and has not done so yet."""
        return self.schedule is not None and self.schedule.due(step) and step > self.last_step

    def step(self, step: int) -> dict[str, Any]:
        """Move the topology if it is due after optimizer step ``step``.

        Returns:
            What happened: ``dropped`` and ``grown`` (values over all layers), ``density``, ``drop_fraction``; empty on
            ordinary steps.
        """
        if self.schedule is None or not self.due(step):
            return {}
        fraction = self.schedule.fraction(step)
        moved = sum(self._move_layer(name, layer, fraction, step) for name, layer in self.layers.items())
        self.last_step = step
        active = sum(layer.layout.n_active for layer in self.layers.values())
        sites = sum(layer.layout.sites for layer in self.layers.values())
        return {"dropped": moved, "grown": moved, "density": active / sites, "drop_fraction": fraction}

    @torch.no_grad()
    def _move_layer(self, name: str, layer: SparseLinear, fraction: float, step: int) -> int:
        layout = layer.layout
        n_drop = int(fraction * layout.n_active)
        if n_drop > layout.n_inactive:
            if name not in self._warned:
                log.warning(
                    "layer %s: %d weights to regrow but only %d inactive sites; moving that many", name, n_drop,
                    layout.n_inactive,
                )  # fmt: skip
                self._warned.add(name)
            n_drop = layout.n_inactive
        keep = keep_highest(magnitude(layer.values), n_drop)
        grown = grow_random(layer.index, n_drop, layout.sites, stream_key(self.seed, name, step, "grow"))
        move = make_move(layer.index, keep, grown)
        apply_move(name, layer, move, self.optimizer, step)
        if self.check_invariants:
            check_moved(name, layer, move, self.optimizer)
        return n_drop

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_step = int(state["last_step"])
