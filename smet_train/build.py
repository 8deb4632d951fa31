"""The composition root: it and ``sparse_model.py`` alone know both the settings and the classes they configure."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smet_train import __version__
from smet_train.config.init_source import source_tokenizer
from smet_train.config.plain import to_dict
from smet_train.config.schema import Config
from smet_train.config.unread import without_effect
from smet_train.data.cache import default_cache_dir
from smet_train.data.loader import BatchLoader
from smet_train.data.rules import ReadRules
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer
from smet_train.data.validation import validation_windows
from smet_train.errors import ConfigError
from smet_train.initial import open_pretrained
from smet_train.optim import FusedStep, LrSchedule, SmetAdamW, parameter_groups
from smet_train.sparse import SparseLinear
from smet_train.sparse.ledger import count_parameters
from smet_train.sparse_model import Backends, build_sparse_model, named_tokenizer
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater
from smet_train.tracking.jsonl import JsonlSink
from smet_train.tracking.sinks import Tracker
from smet_train.tracking.spikes import SpikeMeter
from smet_train.tracking.throughput import Throughput
from smet_train.train.checkpoint import Keep
from smet_train.train.evaluate import mean_loss
from smet_train.train.guard import StepGuard
from smet_train.train.run import LoopSettings, Run
from smet_train.train.saver import Saver
from smet_train.train.signals import StopRequest
from smet_train.train.spike_watch import SpikeWatch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Data:
    """Everything that comes from the data source."""

    source: Source
    tokenizer: TextTokenizer
    batches: BatchLoader
    validation: Tensor

    def close(self) -> None:
        """Stop reading ahead."""
        self.batches.close()


def build_device(config: Config) -> torch.device:
    """``auto`` is the GPU where torch sees one, else the CPU."""
    name = config.train.device.name
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; write train.device=cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def build_source(config: Config) -> Source:
    """Open the source of documents that the settings describe."""
    return open_source(
        SourceSpec(
            kind=config.data.source.name,
            files=tuple(config.data.files),
            name=config.data.name,
            subset=config.data.subset,
            split=config.data.split,
            text_field=config.data.text_field,
            text_unit=config.data.text_unit.name,
            rules=ReadRules(
                on_bad=config.data.on_bad.name,
                max_bad_fraction=config.data.max_bad_fraction,
                max_document_bytes=config.data.max_document_bytes,
                retries=config.data.retries,
            ),
            allow_changed_source=config.data.allow_changed_source,
        ),
        _cache_dir(config),
    )


def build_held_out(config: Config, source: Source, tokenizer: TextTokenizer) -> Tensor:
    """The held-out windows that a run looks at: those of its evaluations, then those of its probe batch."""
    return validation_windows(
        source,
        tokenizer,
        sequence_tokens=config.data.sequence_tokens,
        windows=config.train.eval_windows + config.tracking.probe_windows,
        validation_fraction=config.data.validation_fraction,
        cache_dir=_cache_dir(config),
    )


def _cache_dir(config: Config) -> Path:
    return default_cache_dir() if config.data.cache_dir is None else Path(config.data.cache_dir).expanduser()


def build_data(config: Config, tokenizer_file: Path | None) -> Data:
    """Open the source, get its tokenizer (``tokenizer_file`` if the run has one already) and cut it into windows."""
    source = build_source(config)
    log.info("data: %s", source.description)
    file, hub_name = named_tokenizer(config) if tokenizer_file is None else (str(tokenizer_file), None)
    tokenizer = prepare_tokenizer(
        source,
        file=file,
        hub_name=hub_name,
        vocab_size=config.data.tokenizer.vocab_size,
        train_bytes=config.data.tokenizer.train_bytes,
        validation_fraction=config.data.validation_fraction,
        cache_dir=_cache_dir(config),
    )
    if tokenizer_file is None:
        warn_of_another_tokenizer(config, tokenizer)
    validation = build_held_out(config, source, tokenizer)
    windows = TokenWindows(
        source,
        tokenizer,
        sequence_tokens=config.data.sequence_tokens,
        seed=config.seed,
        shuffle_documents=config.data.shuffle_documents,
        validation_fraction=config.data.validation_fraction,
        allow_changed_source=config.data.allow_changed_source,
    )
    batches = BatchLoader(
        windows, micro_batch_size=config.train.micro_batch_size, prefetch_batches=config.data.prefetch_batches
    )
    return Data(source, tokenizer, batches, validation)


def warn_of_another_tokenizer(config: Config, tokenizer: TextTokenizer) -> None:
    """Say so if ``model.init_from`` has a tokenizer and the run's is not that one."""
    beside = None if config.model.init_from is None else source_tokenizer(Path(config.model.init_from))
    if beside is not None and TextTokenizer.from_file(beside).content_hash != tokenizer.content_hash:
        log.warning(
            "the tokenizer that data.tokenizer names is another one than %s, so that ids may be other text than they "
            "were for the weights of model.init_from; leave data.tokenizer out to train with theirs",
            beside,
        )


def build_optimizer(config: Config, model: nn.Module, densities: dict[str, float]) -> SmetAdamW:
    """SmetAdamW over groups by role; the density rule scales the sparse groups' learning rates."""
    beta1, beta2 = config.optimizer.betas
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
        moments=config.optimizer.moments.name,
        seed=config.seed,
    )


def build_topology(
    config: Config, layers: dict[str, SparseLinear], densities: dict[str, float], optimizer: SmetAdamW
) -> TopologyUpdater:
    """The updater of the sparse layers; it never moves them if there are none or ``topology.enabled=false``."""
    return TopologyUpdater(
        layers,
        optimizer,
        build_topology_schedule(config) if layers else None,
        config.seed,
        rules=build_rules(config),
        targets=densities,
        explore=config.tracking.exploration,
        probe_micro_batches=probe_micro_batches(config),
        check_invariants=config.debug.check_invariants,
    )


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


def build_spikes(config: Config, model: nn.Module, probe: Tensor) -> SpikeWatch:
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
        return mean_loss(model, probe, config.train.micro_batch_size, config.train.precision.name)

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
) -> Run:
    """All parts of a run at step 0.

    Args:
        backends: of a checkpoint, as for :func:`build_sparse_model`.
        restores: a checkpoint will be restored into the run, so that ``model.init_from`` is not read.
    """
    device = build_device(config)
    pretrained = None if restores or config.model.init_from is None else open_pretrained(config)
    model, densities = build_sparse_model(config, data.tokenizer, device, backends, pretrained)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    optimizer = build_optimizer(config, model, densities)
    validation, probe = split_probe(config, data.validation)
    metrics = JsonlSink(run_folder / "metrics.jsonl")
    settings = LoopSettings(
        total_steps=config.train.steps,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        sequence_tokens=config.data.sequence_tokens,
        lr=config.optimizer.lr,
        grad_clip=config.optimizer.grad_clip,
        precision=config.train.precision.name,
        probe_steps=config.topology.probe_steps,
        eval_interval=config.train.eval_interval,
        checkpoint_interval=config.checkpoint.interval,
    )
    return Run(
        settings=settings,
        folder=run_folder,
        config=to_dict(config),
        device=device,
        model=model,
        optimizer=optimizer,
        fused=FusedStep(model, optimizer) if config.train.fused_backward_step else None,
        lr_schedule=LrSchedule(
            name=config.optimizer.schedule.name,
            total_steps=config.train.steps,
            warmup_fraction=config.optimizer.warmup_fraction,
            min_ratio=config.optimizer.min_lr_ratio,
            decay_fraction=config.optimizer.decay_fraction,
        ),
        topology=build_topology(config, layers, densities, optimizer),
        batches=data.batches,
        validation=validation,
        spikes=build_spikes(config, model, probe),
        tracker=Tracker(metrics),
        metrics=metrics,
        throughput=Throughput(),
        stop=stop,
        saver=Saver(
            run_folder / "checkpoints",
            Keep(config.checkpoint.keep, config.checkpoint.keep_every),
            asynchronous=config.checkpoint.asynchronous,
            warn=config.checkpoint.on_error.name == "warn",
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
    if schedule is not None and build_rules(config).prunes:
        lines.append(
            f"method={config.method} starts dense, with an index on top: it needs more memory than dense training "
            f"until the density has fallen towards {config.sparsity.density:g}"
        )
    return lines


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
        "precision": config.train.precision.name,
        "device": str(run.device),
        "seed": config.seed,
        "init_from": config.model.init_from,
        "parameters_active": active,
        "parameters_dense_equivalent": dense_equivalent,
    }
