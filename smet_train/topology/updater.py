"""The topology of a whole model over a run: when a step is due, drop and grow in every sparse layer."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smet_train.errors import CheckpointError
from smet_train.optim.smet_adamw import MAX_AGE, local_steps
from smet_train.sparse.finite import is_finite
from smet_train.sparse.layout import Layout
from smet_train.sparse.ledger import LedgerRow
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.sampling import stream_key
from smet_train.sparse.shards import local
from smet_train.topology.apply import apply_move, apply_shrink, check_moved
from smet_train.topology.exploration import Exploration
from smet_train.topology.group import ALONE, Group
from smet_train.topology.ledger import move_count, topology_ledger
from smet_train.topology.move import Move, make_move, no_move
from smet_train.topology.probe import Found, Probed, probe_gradients
from smet_train.topology.rules import MoveRules, Question, grown_sites, scores
from smet_train.topology.schedule import TopologySchedule
from smet_train.topology.select import keep_highest
from smet_train.topology.sharded_probe import ShardedProbed, are_sharded, first_marked, probe_sharded
from smet_train.topology.whole import made_whole

log = logging.getLogger(__name__)

Backward = Callable[[], Any]


def _nothing(name: str, layer: SparseLinear) -> None:
    """Nobody watches."""


def _slot_size(layout: Layout) -> int:
    return layout.block * layout.block


def _n_active(layer: SparseLinear, density: float) -> int:
    return Layout.from_density(layer.out_features, layer.in_features, density, layer.layout.block).n_active


class _Ages:
    """For how many steps of their layer the active values have existed; of those whose ages have ended, at least."""

    def __init__(self) -> None:
        self._steps = self._slots = 0

    def add(self, state: Mapping[str, Any]) -> None:
        """Count the slots of a layer with the optimizer's ``state``."""
        if "age" not in state:
            return
        step, moved = state["step"], state["moved_steps"]
        ages = [age for age, _ in local_steps(step, moved)]
        if len(moved) >= MAX_AGE:  # ages may have ended: at least
            ages[-1] = step - moved[-1]
        held = torch.bincount(state["age"].flatten().long(), minlength=len(ages)).tolist()
        self._steps += sum(age * n for age, n in zip(ages, held, strict=True))
        self._slots += sum(held)

    @property
    def mean_steps(self) -> float | None:
        """The mean over all slots; None if no ages are kept."""
        return self._steps / self._slots if self._slots else None


class TopologyUpdater:
    """Moves the topology of ``layers`` by ``schedule``; ``schedule=None`` never moves it.

    Each layer drops floor(zeta * K) active weights and grows as many at inactive sites, chosen by ``rules``, so that K
    never changes (SMET, section 3). Layers whose values are frozen stay as they are. Random choices are a function of
    (seed, layer name, step).

    Args:
        targets: final density of each layer, where ``rules.prunes``.
        exploration: of ``layers``, to tell how many sites were ever active; None = it is not told.
        probe_micro_batches: how many micro-batches an update that looks at gradients looks at; for :meth:`ledger`.
        group: processes that share them evenly, each given its own, and over which ``layers`` may be split.

    Attributes:
        fault: why the latest update has moved nothing, weights or gradients being NaN or infinite; else None.
    """

    def __init__(
        self,
        layers: Mapping[str, SparseLinear],
        optimizer: torch.optim.Optimizer,
        schedule: TopologySchedule | None,
        seed: int,
        *,
        rules: MoveRules | None = None,
        targets: Mapping[str, float] | None = None,
        exploration: Exploration | None = None,
        probe_micro_batches: int = 1,
        group: Group = ALONE,
        check_invariants: bool = False,
    ) -> None:
        self.fault: str | None = None
        self.layers = layers
        self.optimizer = optimizer
        self.schedule = schedule
        self.seed = seed
        self.rules = rules or MoveRules()
        self.targets = targets or {}
        self.check_invariants = check_invariants
        self.exploration = exploration
        self.last_step = 0
        self.probe_micro_batches = probe_micro_batches
        self._group = group
        self._warned: set[str] = set()

    def join(self, group: Group) -> None:
        """Make updates together with ``group`` from now on."""
        self._group = group

    def due(self, step: int) -> bool:
        """Whether the topology must move after ``step`` and has not done so yet."""
        return self.schedule is not None and self.schedule.due(step) and step > self.last_step

    def step(
        self, step: int, backward: Sequence[Backward] = (), watch: Callable[[str, SparseLinear], object] = _nothing
    ) -> dict[str, Any]:
        """Move the topology if it is due after optimizer step ``step``.

        Args:
            backward: one callable a micro-batch, which computes its loss and calls ``backward()``; needed if
                ``rules.needs_gradient``.
            watch: called with the name and each layer when it has moved and is whole, wherever it is held.

        Returns:
            What happened: ``dropped`` and ``grown`` (values over all layers), ``density``, ``drop_fraction``,
            ``survived`` (fraction of the values grown by the update before that are kept), ``mean_age_steps`` (of the
            active values, after the update), ``ever_active`` (fraction of sites); None where it can't be told. Empty
            on ordinary steps. Nothing moves by numbers that are NaN or infinite, see ``fault``.
        """
        if self.schedule is None or not self.due(step):
            return {}
        self.fault = self._bad_weights()
        if self.rules.prunes:
            return self._prune(self.schedule, step, watch)
        fraction = self.schedule.fraction(step)
        counts = {name: self._count(name, layer, fraction) for name, layer in self.layers.items()}
        probed = None if self.fault else self._probe(counts, backward)
        if probed is not None and probed.not_finite is not None:
            self.fault = f"the gradient that the topology update looks at is not finite (layer {probed.not_finite})"
        if self.fault is not None:
            counts, probed = dict.fromkeys(counts, 0), None
        young = kept_young = 0
        ages = _Ages()
        for name, layer in self._trained():
            found = None if probed is None else probed.of(name)
            if found is not None and self.rules.grow == "gradient":
                # a layer that the loss did not reach has no sites to grow, and keeps what it has
                counts[name] = 0 if found.sites is None else found.sites.numel()
            with made_whole(layer, self.optimizer, self._group.whole):
                move = no_move(layer.index) if self.fault else self._move(name, layer, counts[name], step, found)
                newest = self._newest(layer)
                if newest is not None:
                    young += int(newest.sum())
                    kept_young += int(newest[move.source_K[~move.grown_K]].sum())
                self._apply(name, layer, move)
                ages.add(self.optimizer.state[layer.values])
                watch(name, layer)
        if self.exploration is not None:
            self.exploration.settle(self._group.add_up)
        self.last_step = step
        moved = sum(count * _slot_size(self.layers[name].layout) for name, count in counts.items())
        return {
            "dropped": moved,
            "grown": moved,
            "density": self._density(),
            "drop_fraction": fraction,
            "survived": kept_young / young if young else None,
            "mean_age_steps": ages.mean_steps,
            "ever_active": None if self.exploration is None else self.exploration.fraction,
        }

    @torch.no_grad()
    def _prune(
        self, schedule: TopologySchedule, step: int, watch: Callable[[str, SparseLinear], object]
    ) -> dict[str, Any]:
        """Drop what the cubic schedule takes and grow nothing."""
        before = self._active_values()
        for name, layer in self._trained() if self.fault is None else ():
            density = schedule.pruned_density(step, self.targets[name])
            n_drop = max(0, layer.layout.n_active - _n_active(layer, density))
            apply_shrink(name, layer, keep_highest(self._scores(name, layer, step, None), n_drop), self.optimizer)
            watch(name, layer)
        self.last_step = step
        active = self._active_values()
        return {
            "dropped": before - active,
            "grown": 0,
            "density": self._density(),
            "drop_fraction": 1 - active / before,
            "survived": None,
            "mean_age_steps": None,
            "ever_active": 1.0,
        }

    @torch.no_grad()
    def _bad_weights(self) -> str | None:
        bad = [not is_finite(local(layer.values)) for layer in self.layers.values()]
        name = first_marked(self.layers, bad, self._group)
        return None if name is None else f"the weights that the topology update looks at are not finite (layer {name})"

    def _active_values(self) -> int:
        return sum(layer.layout.n_values for layer in self.layers.values())

    def _density(self) -> float:
        """Active sites over all sites, a site as large as its block."""
        sites = sum(layer.layout.sites * _slot_size(layer.layout) for layer in self.layers.values())
        return self._active_values() / sites

    def fit(self, n_active: Mapping[str, int]) -> None:
        """Shrink layers that a checkpoint holds with fewer active values, before its tensors are copied into them."""
        for name, layer in self.layers.items():
            if self.rules.prunes and n_active.get(name, layer.layout.n_active) < layer.layout.n_active:
                keep = torch.zeros(layer.layout.n_active, dtype=torch.bool, device=layer.values.device)
                keep[: n_active[name]] = True
                apply_shrink(name, layer, keep, self.optimizer)

    def _trained(self) -> list[tuple[str, SparseLinear]]:
        """The layers that are not frozen: nothing would train what is grown in others."""
        return [(name, layer) for name, layer in self.layers.items() if layer.values.requires_grad]

    def _count(self, name: str, layer: SparseLinear, fraction: float) -> int:
        if not layer.values.requires_grad:
            return 0
        layout = layer.layout
        wanted = int(fraction * layout.n_active)
        if wanted > layout.n_inactive and name not in self._warned:
            log.warning(
                "layer %s: %d weights to regrow but only %d inactive sites; moving that many",
                name,
                wanted,
                layout.n_inactive,
            )
            self._warned.add(name)
        return move_count(layout, fraction)

    def _probe(self, counts: Mapping[str, int], backward: Sequence[Backward]) -> Probed | ShardedProbed | None:
        if not self.rules.needs_gradient:
            return None
        assert backward, "an update that looks at gradients needs micro-batches"
        wanted = counts if self.rules.grow == "gradient" else dict.fromkeys(counts, 0)
        probe = probe_sharded if are_sharded(self.layers) else probe_gradients
        return probe(self.layers, wanted, backward, active=self.rules.scores_gradient, group=self._group)

    @torch.no_grad()
    def _move(self, name: str, layer: SparseLinear, count: int, step: int, found: Found | None) -> Move:
        keep = keep_highest(self._scores(name, layer, step, found), count)
        index_K = layer.index
        if self.rules.grow == "gradient":
            assert found is not None
            grown = index_K.new_empty(0) if found.sites is None else found.sites
        else:
            grown = grown_sites(self._question(name, layer, step, "grow", None), count)
        return make_move(index_K, keep, grown)

    def _scores(self, name: str, layer: SparseLinear, step: int, found: Found | None) -> Tensor:
        gradient = None if found is None else found.gradient
        return scores(self._question(name, layer, step, "drop", gradient))

    def _question(self, name: str, layer: SparseLinear, step: int, purpose: str, gradient: Tensor | None) -> Question:
        return Question(name, layer, step, stream_key(self.seed, name, step, purpose), self.rules, gradient)

    def _apply(self, name: str, layer: SparseLinear, move: Move) -> None:
        apply_move(name, layer, move, self.optimizer, keep_moments=self.rules.keep_moments)
        if self.exploration is not None:
            self.exploration.visit(name, move.new_index_K[move.grown_K])
        if self.check_invariants:
            check_moved(name, layer, move, self.optimizer, keep_moments=self.rules.keep_moments)

    def _newest(self, layer: SparseLinear) -> Tensor | None:
        """True at the slots that the update before grew; None before any update, or where no ages are kept."""
        state = self.optimizer.state[layer.values]
        return state["age"].flatten() == 0 if state.get("moved_steps") else None

    def ledger(self) -> list[LedgerRow]:
        """Bytes that the updater itself holds: always, and at most during an update."""
        return topology_ledger(
            self.layers,
            self.schedule,
            self.rules,
            explore=self.exploration is not None,
            probe_micro_batches=self.probe_micro_batches,
            group=self._group,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the tensors are in :meth:`tensors`. Where weights are pruned, whether that is done."""
        state = {"last_step": self.last_step, "ever_active": self.exploration.ever_active if self.exploration else None}
        return {**state, "pruned": self._is_pruned()} if self.rules.prunes else state

    def _is_pruned(self) -> bool:
        return all(layer.layout.n_active <= _n_active(layer, self.targets[name]) for name, layer in self.layers.items())

    def tensors(self) -> dict[str, Tensor]:
        """The bits of the sites that were ever active, by layer; empty if they are not kept."""
        return {} if self.exploration is None else dict(self.exploration.bits)

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` and :meth:`tensors` gave.

        Raises:
            CheckpointError: if the bits are of other layers.
        """
        self.last_step = int(state["last_step"])
        if self.exploration is not None and not tensors:
            log.warning("sites ever active are not told: the checkpoint was written without them")
            self.exploration = None
        if self.exploration is None:
            return
        held = self.exploration.bits
        if held.keys() != tensors.keys() or any(held[name].shape != tensors[name].shape for name in held):
            raise CheckpointError("the checkpoint's topology is of other layers; resume with the run's own settings")
        self.exploration.load(tensors, int(state["ever_active"]))
