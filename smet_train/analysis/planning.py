"""The footprint of a configuration: its model without numbers, one step of it, and what its topology holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from smet_train.analysis.footprint import MICRO_BATCHES_TAKEN, Footprint, MakeLoss, take_step
from smet_train.build import build_optimizer, build_rules, build_topology_schedule, probe_micro_batches
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.sparse.ledger import LedgerRow, count_parameters, sparse_layers
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse_model import Backends, Vocabulary, build_sparse_model, model_remarks, planned_vocabulary
from smet_train.topology.ledger import topology_ledger
from smet_train.train.processes import ALONE, Processes
from smet_train.train.step import TokenLoss


class Unpredictable(ConfigError):
    """A model whose step can't be taken on tensors without numbers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration's model, as it will be, and the footprint of one of its steps.

    ``remarks``: what there is to say of the model.
    ``sent_bytes``: what a process of several that hold a part each hands to collective operations in a step, for
    parameters and gradients.
    """

    layers: dict[str, SparseLinear]
    parameters_active: int
    parameters_dense: int
    footprint: Footprint
    sent_bytes: int
    remarks: list[str]


def plan_run(
    config: Config,
    micro_batch_size: int | None = None,
    vocabulary: Vocabulary | None = None,
    backends: Backends | None = None,
    *,
    split_over: int = 1,
) -> Plan:
    """Build the model of ``config`` without numbers and take one step of it; no generator is moved.

    Args:
        micro_batch_size: instead of the configuration's.
        vocabulary: of the tokenizer that is at hand; None = the one that the configuration names or will train.
        backends: of a checkpoint, as for :func:`build_sparse_model`.
        split_over: so many processes hold a part each, and the footprint is of the first; this process must not be one
            of several in truth then.

    Raises:
        Unpredictable: if shapes inside the model depend on numbers.
        SmetError: for everything else that would stop the run before its first step, but for its data and for a model
            that is not causal.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        words = vocabulary or planned_vocabulary(config)
        model, densities = build_sparse_model(config, words, torch.device("meta"), backends)
    layers = sparse_layers(model)
    told = model_remarks(config, model, densities)
    active, dense = count_parameters(model)
    size = micro_batch_size or config.train.micro_batch_size
    micro_batches = config.train.batch_size // (size * split_over)
    with _split(split_over, config.train.precision.name) as (processes, make_loss):
        try:
            footprint = take_step(
                model,
                lambda planned: build_optimizer(config, planned, densities),
                micro_batch_size=size,
                micro_batches=micro_batches,
                sequence_tokens=config.data.sequence_tokens,
                grad_clip=config.optimizer.grad_clip,
                make_loss=make_loss,
                fused=config.train.fused_backward_step,
            )
        except RuntimeError as error:  # what fake tensors raise
            raise Unpredictable(
                f"model.config_file={config.model.config_file}: memory and operations can't be predicted, because what "
                f"{type(model).__name__} computes depends on numbers ({_first_line(error)}); smet-train trains it all "
                "the same"
            ) from error
        if layers:
            footprint = with_topology(footprint, config, layers, processes)
    taken = min(micro_batches, MICRO_BATCHES_TAKEN)
    footprint = replace(footprint, flops=footprint.flops * split_over)
    return Plan(layers, active, dense, footprint, processes.sent_bytes * micro_batches // taken, told)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _split(over: int, precision: str) -> Iterator[tuple[Processes, MakeLoss]]:
    """The first of ``over`` processes, and the loss of a model that is split over them."""
    if over == 1:
        yield ALONE, lambda model: TokenLoss(model, precision)
        return
    from smet_train.analysis.pretended import pretended
    from smet_train.train.sharded_gradients import ShardedGradients

    with pretended(over) as (processes, mesh):
        yield processes, lambda model: ShardedGradients(processes, model, precision, {}, mesh)


def with_topology(
    footprint: Footprint, config: Config, layers: dict[str, SparseLinear], processes: Processes
) -> Footprint:
    """Add what the topology holds. During an update whole values have no gradients, so a probe takes their room first;
    split ones have them. What the probe takes differs between processes, and the most that one takes is planned."""
    rules = build_rules(config)

    def of(rank: int) -> list[LedgerRow]:
        return topology_ledger(
            layers,
            build_topology_schedule(config),
            rules,
            explore=config.tracking.exploration,
            probe_micro_batches=probe_micro_batches(config),
            group=Processes(rank, processes.size),
        )

    rows = of(processes.rank)
    probe = max(_bytes_of(of(rank), "gradient probe") for rank in range(processes.size)) if rules.needs_gradient else 0
    gradients = next(row.bytes for row in footprint.rows if row.kind == "gradients")
    room = gradients if processes.size == 1 else 0
    peak_bytes = footprint.peak_bytes + _bytes_of(rows, "exploration") + max(0, probe - room)
    return replace(footprint, rows=[*footprint.rows, *rows], peak_bytes=peak_bytes)


def _bytes_of(rows: list[LedgerRow], kind: str) -> int:
    return sum(row.bytes for row in rows if row.kind == kind)
