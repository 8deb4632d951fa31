"""Sparse training in anyone's loop: a sparse model, its optimizer and its topology in one object. Torch alone."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smet_train.errors import CheckpointError, ConfigError
from smet_train.optim import SmetAdamW, parameter_groups
from smet_train.sparse import Layout, SparseLinear, dense_copy, sparsify
from smet_train.sparse.replaceable import Layers
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater
from smet_train.topology.processes import ProcessesOf

Backward = Callable[[], Any]
log = logging.getLogger(__name__)

_LISTED = 3
_LR_DENSITY_RULES = ("none", "sqrt", "linear")


class SparseTraining:
    """Makes ``model`` sparse in place and holds what trains it; call :meth:`after_step` after each optimizer step.

    Without further arguments this is SMET as ``smet-train`` runs it: weights of least magnitude are dropped every
    ``interval`` steps and as many grown at random, whose updates count their own steps. For an EMA or SWA take
    :class:`smet_train.WeightAverage`: an average of ``values``, slot by slot, mixes up weights that have moved.

    Args:
        model: any module; its chosen ``nn.Linear`` (and transformers' ``Conv1D``) layers are replaced. Move it to its
            device and dtype before.
        density: fraction of each chosen layer's weights that exist, in (0, 1].
        lr: peak learning rate; the groups' scales are apart from it, so that torch's schedulers can be used.
        total_steps: optimizer steps of the whole run; the drop fraction falls over them.
        include, exclude: globs of layer names; None = :func:`smet_train.sparse.default_layers`.
        seed: of the first sites and of the grown ones.
        block: edge of the square blocks that are active or not; 1 = single values.
        backend: what computes the sparse layers.
        interval: steps between topology updates.
        drop_fraction, final_drop_fraction: of active values that an update drops, at first and at last (a cosine).
        rules: what is dropped and grown; rules that look at gradients need ``backward`` in :meth:`after_step`.
        lr_density_rule: sparse layers' learning rate times 1 (none), density^-1/2 (sqrt) or 1/density (linear).
        weight_decay: of matrices and sparse values; norms and biases do not decay.
        process_group: processes that train this model together, each with batches of its own (DDP); None = all of
            ``torch.distributed``, where it is initialized. Gradients that decide growth are averaged over them, and
            their indices are compared after each topology update. One that trains alone among others writes
            ``dist.new_group([rank])``. Make the model sparse before DDP wraps it.
        adam: further arguments of :class:`SmetAdamW`: betas, eps, local_step, regrow_warmup_steps, moments.

    Attributes:
        layers: the sparse layers by name.
        optimizer: a torch optimizer over all parameters of ``model``.
        steps: optimizer steps taken.

    Raises:
        ConfigError: for a value out of range, a pattern that matches nothing, or a layer that can't be made sparse.
        LayoutError: if a layer is so small that its density leaves it no active value.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        lr: float,
        total_steps: int,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        seed: int = 0,
        block: int = 1,
        backend: str = "densify",
        interval: int = 100,
        drop_fraction: float = 0.2,
        final_drop_fraction: float = 0.005,
        rules: MoveRules | None = None,
        lr_density_rule: str = "linear",
        weight_decay: float = 0.0,
        process_group: "dist.ProcessGroup | None" = None,
        **adam: Any,
    ) -> None:
        rules = rules or MoveRules()
        _refuse_wrapped(model)
        _check(density, total_steps, interval, lr_density_rule, rules)
        _check_fractions(drop_fraction, final_drop_fraction)
        self.model = model
        self.total_steps = total_steps
        self.steps = 0
        self._process_group = process_group
        chosen = _default_layers(model) if include is None else include
        self.layers = sparsify(model, chosen, exclude, density=density, seed=seed, block=block, backend=backend)
        groups = parameter_groups(
            model,
            dict.fromkeys(self.layers, density),
            lr_density_rule=lr_density_rule,
            weight_decay=weight_decay,
            topology_moves=True,
        )
        schedule = TopologySchedule(interval, drop_fraction, final_drop_fraction, "cosine", 1.0, total_steps)
        self.optimizer = SmetAdamW(
            groups, lr=lr, topology_interval=interval, topology_updates=schedule.updates, seed=seed, **adam
        )
        self.optimizer.names = {parameter: name for name, parameter in model.named_parameters()}
        self.topology = TopologyUpdater(self.layers, self.optimizer, schedule, seed, rules=rules)

    def after_step(self, backward: Backward | Sequence[Backward] = ()) -> dict[str, Any]:
        """Count an optimizer step, and move the topology if it is due.

        Args:
            backward: for rules that look at gradients: what computes the loss of a batch and calls ``backward()`` on
                it, once or for several micro-batches. It is called when the topology moves, and not before; it may
                call the model or what DDP has made of it. The gradients that it leaves are dropped, others are kept.

        Returns:
            What moved (see :meth:`TopologyUpdater.step`); empty on ordinary steps. If nothing did because weights or
            gradients are NaN or infinite, ``topology.fault`` says so.

        Raises:
            ConfigError: if the rules need ``backward`` and it is not given.
            TrainingError: in all processes, if one is at another step, or has chosen other sites.
        """
        micro_batches = [backward] if callable(backward) else list(backward)
        if self.topology.rules.needs_gradient and not micro_batches and self.topology.due(self.steps + 1):
            raise ConfigError(
                f"drop={self.topology.rules.drop} with grow={self.topology.rules.grow} looks at gradients when the "
                "topology moves; write after_step(backward), backward being a function that computes the loss of a "
                "batch and calls backward() on it"
            )
        self.steps += 1
        if not self.topology.due(self.steps):
            return {}
        processes = self._processes()
        if processes is None:
            return self.topology.step(self.steps, self._apart(micro_batches))
        processes.check_ready(self.steps, len(micro_batches))
        self.topology.join(processes)
        moved = self.topology.step(self.steps, self._apart(micro_batches, trained=True))
        processes.check_same(self.layers, self.steps)
        return moved

    def _processes(self) -> ProcessesOf | None:
        """Those that move the topology together; None if this one is alone."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(self._process_group) == 1:
            return None
        return ProcessesOf(self._process_group, next(iter(self.layers.values())).values.device)

    def _apart(self, micro_batches: Sequence[Backward], *, trained: bool = False) -> list[Backward]:
        """``micro_batches`` that leave all gradients as they were.

        Args:
            trained: let the values have gradients meanwhile: DDP waits for those of all parameters that it knows.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        values = [layer.values for layer in self.layers.values() if layer.values.requires_grad] if trained else []

        def run(backward: Backward) -> None:
            held = [parameter.grad for parameter in parameters]
            asked = [parameter.requires_grad for parameter in values]
            try:
                for parameter in parameters:
                    parameter.grad = None
                for parameter in values:
                    parameter.requires_grad_(True)
                backward()
            finally:
                for parameter, before in zip(values, asked, strict=True):
                    parameter.requires_grad_(before)
                for parameter, gradient in zip(parameters, held, strict=True):
                    parameter.grad = gradient

        return [partial(run, backward) for backward in micro_batches]

    def dense_copy(self) -> nn.Module:
        """A dense copy of the model, which computes the same and which everybody can read.

        ``training.dense_copy().save_pretrained(folder)`` is the way out of sparse training for models of transformers:
        what their own ``save_pretrained`` would write now are sparse layers, which ``from_pretrained`` does not read.
        To go on with the training, save ``model.state_dict()`` and :meth:`state_dict`.
        """
        return dense_copy(self.model)

    def go_on_from(self, step: int) -> None:
        """Count from ``step`` on, after which the topology has moved if it was due; weights and optimizer are apart."""
        self.steps = step
        self.topology.load_state_dict({"last_step": step}, {})

    def state_dict(self) -> dict[str, Any]:
        """With ``model.state_dict()`` all that decides how the training goes on; for ``torch.save``."""
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "layers": {name: _shape(layer) for name, layer in self.layers.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, bit for bit; load the model's own state too, before or after.

        Raises:
            CheckpointError: if it is of another length of run, of other layers, or of another model or optimizer.
        """
        if state["total_steps"] != self.total_steps:
            raise CheckpointError(
                f"the state is of a run of total_steps={state['total_steps']}, this one has {self.total_steps}, and "
                f"the topology's schedule would be another; write total_steps={state['total_steps']}"
            )
        self._check_layers(state.get("layers"))
        self.optimizer.load_state_dict(state["optimizer"])
        self.go_on_from(int(state["steps"]))

    def _check_layers(self, saved: Mapping[str, Sequence[int]] | None) -> None:
        if saved is None:  # earlier versions did not tell
            return
        odd = sorted(saved.keys() ^ self.layers.keys())
        if odd:
            is_here = odd[0] in self.layers
            raise CheckpointError(
                f"layer {odd[0]} is sparse {'here' if is_here else 'in the state'} and dense "
                f"{'in the state' if is_here else 'here'} ({len(odd)} such layers); write include=[...] with the "
                "layers that the state has"
            )
        for name, layer in self.layers.items():
            there, here = Layout(*saved[name]), layer.layout
            if there != here:
                raise CheckpointError(
                    f"layer {name} is {_told(there)} in the state, and {_told(here)} here; build the model with the "
                    f"density, block and sizes that the state has"
                )


def _shape(layer: SparseLinear) -> list[int]:
    layout = layer.layout
    return [layout.out_features, layout.in_features, layout.n_active, layout.block]


def _told(layout: Layout) -> str:
    blocks = "" if layout.block == 1 else f" in blocks of {layout.block}"
    return f"{layout.shape_text} at density {layout.density:.4g} ({layout.n_values} active values{blocks})"


def _refuse_wrapped(model: nn.Module) -> None:
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ConfigError(
            "the model is wrapped in DistributedDataParallel, which would not average the gradients of its sparse "
            "layers; make SparseTraining of the model itself, and wrap it afterwards"
        )


def _check(density: float, total_steps: int, interval: int, lr_density_rule: str, rules: MoveRules) -> None:
    if not 0 < density <= 1:
        raise ConfigError(f"density={density} must be above 0 and at most 1; write for instance density=0.1")
    if total_steps < 1 or interval < 1:
        raise ConfigError(f"total_steps={total_steps} and interval={interval} must be at least 1")
    if lr_density_rule not in _LR_DENSITY_RULES:
        raise ConfigError(f"lr_density_rule={lr_density_rule} is unknown; write one of {', '.join(_LR_DENSITY_RULES)}")
    if rules.prunes:
        raise ConfigError(
            "grow=nothing prunes a dense model; SparseTraining trains at one density, so write grow=random or "
            "grow=gradient"
        )


def _check_fractions(first: float, final: float) -> None:
    if not 0 <= final <= first < 1:
        raise ConfigError(
            f"drop_fraction={first} and final_drop_fraction={final} must be in [0, 1), the second not the larger; "
            "write for instance drop_fraction=0.2, final_drop_fraction=0.005"
        )


def _default_layers(model: nn.Module) -> list[str]:
    names, left = Layers(model).default()
    reasons: dict[str, list[str]] = {}
    for name, reason in left.items():
        reasons.setdefault(reason, []).append(name)
    told = "; ".join(f"{_listed(of_reason)}, because {reason}" for reason, of_reason in reasons.items())
    if not names:
        raise ConfigError(
            f"{type(model).__name__} has no linear layer that could be made sparse but its output layer"
            + (f"; dense stay {told}; name layers by include=[...]" if told else "")
        )
    if told:
        log.warning("dense stay %s", told)
    return names


def _listed(names: Sequence[str]) -> str:
    first = ", ".join(names[:_LISTED])
    return first if len(names) <= _LISTED else f"{first} and {len(names) - _LISTED} more"
