"""The composition root: it, ``build_data.py`` and ``sparse_model.py`` alone know both the settings and the classes they
configure."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smet_train import __version__
from smet_train.build_data import Data
from smet_train.config.plain import to_dict
from smet_train.config.schema import Config
from smet_train.config.unread import without_effect
from smet_train.initial import open_pretrained
from smet_train.models import blocks_of
from smet_train.optim import FusedStep, LrSchedule, SmetAdamW, parameter_groups, peak_rates
from smet_train.optim.smet_adamw import MAX_AGE, age_dtype, settled_steps, updates_counted
from smet_train.sparse import SparseLinear
from smet_train.sparse.ledger import count_parameters
from smet_train.sparse_model import Backends, build_sparse_model, named_tokenizer, pruned_to
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater
from smet_train.topology.exploration import Exploration
from smet_train.tracking.jsonl import JsonlSink, NoMetrics
from smet_train.tracking.sinks import Tracker
from smet_train.tracking.spikes import SpikeMeter
from smet_train.tracking.throughput import Throughput
from smet_train.tracking.topology_map import TopologyMap
from smet_train.train.agreement import digests
from smet_train.train.checkpoint import Keep
from smet_train.train.device import choose_device
from smet_train.train.evaluate import mean_loss
from smet_train.train.guard import StepGuard
from smet_train.train.precision import slow_products
from smet_train.train.processes import ALONE, Processes
from smet_train.train.run import LoopSettings, Run
from smet_train.train.saver import Saver
from smet_train.train.sharded_gradients import ShardedGradients
from smet_train.train.shared_gradients import SharedGradients
from smet_train.train.signals import StopRequest
from smet_train.train.spike_watch import SpikeWatch
from smet_train.train.step import TokenLoss

log = logging.getLogger(__name__)


def build_optimizer(config: Config, model: nn.Module, densities: dict[str, float]) -> SmetAdamW:
    """SmetAdamW over groups by role; the density rule scales the sparse groups' learning rates."""
    beta1, beta2 = config.optimizer.betas
    schedule = build_topology_schedule(config)
    groups = parameter_groups(
        model,
        densities,
        lr_density_rule=config.optimizer.lr_density_rule.name,
        weight_decay=config.optimizer.weight_decay,
        topology_moves=config.topology.enabled and config.topology.grow.name != "nothing",
        embedding_lr_scale=(config.optimizer.embedding_lr or config.optimizer.lr) / config.optimizer.lr,
    )
    return SmetAdamW(
        groups,
        lr=config.optimizer.lr,
        betas=(beta1, beta2),
        eps=config.optimizer.eps,
        local_step=config.optimizer.local_step,
        regrow_warmup_steps=config.optimizer.regrow_warmup_steps,
        topology_interval=config.topology.interval,
        topology_updates=0 if schedule is None else schedule.updates,
        moments=config.optimizer.moments.name,
        seed=config.seed,
    )


def build_topology(
    config: Config,
    layers: dict[str, SparseLinear],
    densities: dict[str, float],
    optimizer: SmetAdamW,
    processes: Processes = ALONE,
    exploration: Exploration | None = None,
) -> TopologyUpdater:
    """The updater of the sparse layers; it never moves them if there are none or ``topology.enabled=false``.

    Args:
        exploration: of :func:`build_exploration`, made before the layers were split over ``processes``.
    """
    if exploration is not None:
        exploration.split(layers)
    return TopologyUpdater(
        layers,
        optimizer,
        build_topology_schedule(config) if layers else None,
        config.seed,
        rules=build_rules(config),
        targets=densities,
        exploration=exploration,
        probe_micro_batches=probe_micro_batches(config),
        group=processes,
        check_invariants=config.debug.check_invariants,
    )


def build_exploration(config: Config, layers: dict[str, SparseLinear]) -> Exploration | None:
    """The sites that are active at first in ``layers``, which are whole; None if nothing is told of them or moves."""
    moves = config.topology.enabled and config.topology.grow.name != "nothing"
    return Exploration(layers) if config.tracking.exploration and layers and moves else None


def build_topology_schedule(config: Config) -> TopologySchedule | None:
    """When and how much the topology moves; None if ``topology.enabled=false``."""
    if not config.topology.enabled:
        return None
    return TopologySchedule(
        interval=config.topology.interval,
        drop_fraction=config.topology.drop_fraction,
        final_drop_fraction=config.topology.final_drop_fraction,
        shape=config.topology.drop_schedule.name,
        stop_at=config.topology.stop_at,
        total_steps=config.train.steps,
    )


def build_rules(config: Config) -> MoveRules:
    """What is dropped and grown, and how grown values start."""
    return MoveRules(
        drop=config.topology.drop.name,
        grow=config.topology.grow.name,
        drop_temperature=config.topology.drop_temperature,
        drop_gradient_weight=config.topology.drop_gradient_weight,
        keep_moments=config.optimizer.regrow_moments.name == "keep",
    )


def probe_micro_batches(config: Config) -> int:
    """Micro-batches that an update which looks at gradients averages over."""
    return config.topology.probe_steps * (config.train.batch_size // config.train.micro_batch_size)


def build_loss(
    config: Config, model: nn.Module, processes: Processes
) -> TokenLoss | SharedGradients | ShardedGradients:
    """The loss whose gradients ``processes`` share; with ``train.parallel=fsdp`` it splits the parameters of ``model``,
    so that what follows must be made afterwards."""
    precision = config.train.precision.name
    if processes.size == 1:
        return TokenLoss(model, precision)
    if config.train.parallel.name == "fsdp":
        return ShardedGradients(processes, model, precision, digests(model))
    return SharedGradients(processes, model, precision)


def build_spikes(
    config: Config,
    model: nn.Module,
    probe: Tensor,
    processes: Processes,
    sharded: ShardedGradients | None,
) -> SpikeWatch:
    """Spike meters; the last ``tracking.probe_windows`` windows of the validation set are the fixed probe batch."""

    def meter(source: str) -> SpikeMeter:
        return SpikeMeter(
            source=source,
            horizon_steps=config.tracking.spike_horizon_steps,
            baseline_steps=config.tracking.spike_baseline_steps,
            beta2=config.optimizer.betas[1],
        )

    if probe.shape[0] == 0:
        return SpikeWatch(meter("train"))

    def probe_loss() -> float:
        return mean_loss(
            model,
            probe,
            config.train.micro_batch_size,
            config.train.precision.name,
            processes=processes,
            sharded=sharded,
        )

    return SpikeWatch(meter("train"), meter("probe"), probe_loss)


def split_probe(config: Config, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """(validation windows, probe windows), disjoint; a source too small for both gives what there is, in that order."""
    n_validation = min(config.train.eval_windows, held_out.shape[0])
    if held_out.shape[0] < config.train.eval_windows + config.tracking.probe_windows:
        log.warning(
            "the validation split holds %d full windows, fewer than train.eval_windows=%d + tracking.probe_windows=%d",
            held_out.shape[0], config.train.eval_windows, config.tracking.probe_windows,
        )  # fmt: skip
    return held_out[:n_validation], held_out[n_validation:]


def build_run(
    config: Config,
    run_folder: Path,
    data: Data,
    stop: StopRequest,
    backends: Backends | None = None,
    *,
    restores: bool = False,
    processes: Processes = ALONE,
) -> Run:
    """All parts of a run at step 0.

    Args:
        backends: of a checkpoint, as for :func:`build_sparse_model`.
        restores: a checkpoint will be restored into the run, so that ``model.init_from`` is not read.
        processes: those that train the run together.
    """
    device = choose_device(config.train.device.name, "train.device=")
    slow = slow_products(device, config.train.precision.name)
    if slow and processes.leads:
        log.warning("train.precision=%s: %s; write train.precision=fp32", config.train.precision.name, slow)
    pretrained = None if restores or config.model.init_from is None else open_pretrained(config)
    model, densities = build_sparse_model(config, data.tokenizer, device, backends, pretrained)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    exploration = build_exploration(config, layers)
    loss = build_loss(config, model, processes)
    optimizer = build_optimizer(config, model, densities)
    validation, probe = split_probe(config, data.validation)
    warn = config.checkpoint.on_error.name == "warn"
    metrics = JsonlSink(run_folder / "metrics.jsonl", patient=warn) if processes.leads else NoMetrics()
    precision = config.train.precision.name
    settings = LoopSettings(
        total_steps=config.train.steps,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        processes=processes.size,
        sequence_tokens=config.data.sequence_tokens,
        lr=config.optimizer.lr,
        grad_clip=config.optimizer.grad_clip,
        precision=precision,
        probe_steps=config.topology.probe_steps,
        eval_interval=config.train.eval_interval,
        checkpoint_interval=config.checkpoint.interval,
    )
    return Run(
        settings=settings,
        folder=run_folder,
        config=to_dict(config),
        device=device,
        processes=processes,
        model=model,
        loss=loss,
        optimizer=optimizer,
        fused=FusedStep(model, optimizer) if config.train.fused_backward_step else None,
        lr_schedule=LrSchedule(
            name=config.optimizer.schedule.name,
            total_steps=config.train.steps,
            warmup_fraction=config.optimizer.warmup_fraction,
            min_ratio=config.optimizer.min_lr_ratio,
            decay_fraction=config.optimizer.decay_fraction,
        ),
        topology=build_topology(config, layers, densities, optimizer, processes, exploration),
        batches=data.batches,
        validation=validation,
        spikes=build_spikes(config, model, probe, processes, loss if isinstance(loss, ShardedGradients) else None),
        topology_map=TopologyMap(layers, config.tracking.map_layer, processes.whole),
        tracker=Tracker(metrics),
        metrics=metrics,
        throughput=Throughput(),
        stop=stop,
        saver=Saver(
            run_folder / "checkpoints",
            Keep(config.checkpoint.keep, config.checkpoint.keep_every),
            asynchronous=config.checkpoint.asynchronous,
            warn=warn,
            processes=processes,
        ),
        guard=StepGuard(
            max_bad_steps=config.train.max_bad_steps,
            max_rollbacks=config.train.max_rollbacks,
            max_loss_rise=config.train.max_loss_rise,
        ),
    )


def remarks(config: Config) -> list[str]:
    """What to know of these settings before the run: what costs more than it seems, and what does nothing."""
    lines = [f"no effect   {', '.join(settings)}: {reason}" for reason, settings in without_effect(config).items()]
    schedule = build_topology_schedule(config) if config.sparsity.enabled else None
    if schedule is not None and schedule.updates == 0:
        lines.append(
            f"topology    never moves: the first update would be after step {config.topology.interval:,}, and there is "
            f"none from step {config.topology.stop_at * config.train.steps:g} on"
        )
    if schedule is not None and not build_rules(config).prunes:
        lines += _about_ages(config, schedule)
    if schedule is not None and build_rules(config).prunes:
        lines.append(
            f"method={config.method} starts dense, with an index on top: it needs more memory than dense training "
            f"until the density has fallen towards {config.sparsity.density:g}"
        )
    return lines


def _about_ages(config: Config, schedule: TopologySchedule) -> list[str]:
    """What to know where a byte is not enough for the age of a sparse value."""
    group = {
        "betas": tuple(config.optimizer.betas),
        "local_step": config.optimizer.local_step,
        "regrow_warmup_steps": config.optimizer.regrow_warmup_steps,
        "topology_interval": schedule.interval,
        "topology_updates": schedule.updates,
    }
    counted = updates_counted(group, torch.float32)
    if counted <= MAX_AGE:
        return []
    from_interval = -(-settled_steps(group, torch.float32) // MAX_AGE)
    return [
        f"ages        {age_dtype(counted).itemsize} bytes a sparse value, which count {counted:,} updates, as long as "
        f"local steps matter; 1 byte is enough from topology.interval={from_interval} on"
    ]


_ROLES = {
    "sparse": "sparse layers",
    "embedding": "embeddings and output layer",
    "dense": "dense matrices",
    "no_decay": "norms and biases",
}
_RULES = {"none": "", "sqrt": " (optimizer.lr / sqrt(density))", "linear": " (optimizer.lr / density)"}


def rates_line(config: Config, optimizer: SmetAdamW) -> str:
    """The learning rates at the schedule's peak: a density rule multiplies those of sparse layers alone."""
    rule = {"sparse": _RULES[config.optimizer.lr_density_rule.name]}
    peaks = peak_rates(optimizer.param_groups, config.optimizer.lr)
    told = [
        f"{' to '.join(f'{rate:.3g}' for rate in sorted({rates[0], rates[-1]}))} {_ROLES[role]}{rule.get(role, '')}"
        for role, rates in peaks.items()
    ]
    return f"peak rates  {', '.join(told)}"


def beginning(config: Config) -> list[str]:
    """What a run with ``model.init_from`` takes from there, and what not."""
    file, hub_name = named_tokenizer(config)
    return [
        f"weights     begin as those of {config.model.init_from}; optimizer, schedules and data begin anew",
        f"tokenizer   {file or hub_name}",
    ]


def run_header(config: Config, run: Run) -> dict[str, Any]:
    """The first event of a run: what was trained and how, with the facts that a spike measurement must state."""
    active, dense_equivalent = count_parameters(run.model)
    layers = run.topology.layers
    held = {name: layer.layout.density for name, layer in layers.items()}
    blocks = blocks_of(run.model, pruned_to(config, run.topology.targets))
    return {
        "event": "run",
        "version": __version__,
        "torch": torch.__version__,
        "method": config.method,
        "density": config.sparsity.density if config.sparsity.enabled else 1.0,
        "beta2": config.optimizer.betas[1],
        "interval": config.topology.interval if run.topology.schedule else None,
        "drop_fraction": config.topology.drop_fraction if run.topology.schedule else None,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "sequence_tokens": config.data.sequence_tokens,
        "peak_lr": peak_rates(run.optimizer.param_groups, config.optimizer.lr),
        "precision": config.train.precision.name,
        "device": str(run.device),
        "seed": config.seed,
        "init_from": config.model.init_from,
        "parameters_active": active,
        "parameters_dense_equivalent": dense_equivalent,
        "layer_densities": dict(run.topology.targets) if run.topology.rules.prunes else held,
        **({} if blocks is None else {"block_density": blocks.density, "dense_in_blocks": list(blocks.dense)}),
    }
