"""What a run will take, before any of it is allocated: parameters, bytes by kind, operations, the batch that fits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table

from smet_train.analysis.footprint import Footprint, take_step
from smet_train.analysis.layers import print_layers
from smet_train.analysis.summary import bytes_table, format_bytes
from smet_train.build import (
    build_optimizer,
    build_rules,
    build_sparse_model,
    build_topology_schedule,
    explain_backends,
    planned_vocabulary,
    probe_micro_batches,
    remarks,
)
from smet_train.config.fields import setting
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.sparse.ledger import count_parameters, sparse_layers
from smet_train.sparse.linear import SparseLinear
from smet_train.topology.updater import topology_ledger

Compose = Callable[[list[str]], Config]


@dataclass
class PlanSettings:
    """Settings of ``smet-plan`` itself, ``plan.*`` on the command line."""

    densities: list[float] = setting("also a table of these densities", [], above=0, at_most=1)
    memory_gib: float | None = setting("memory that the largest micro-batch is sought for, GiB", None, above=0)


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration's model, as it will be, and the footprint of one of its steps."""

    layers: dict[str, SparseLinear]
    parameters_active: int
    parameters_dense: int
    footprint: Footprint


def plan_run(config: Config, micro_batch_size: int | None = None) -> Plan:
    """Build the model of ``config`` without numbers and take one step of it.

    Raises:
        SmetError: for everything that would stop the run before its first step but for its data.
    """
    model, densities = build_sparse_model(config, planned_vocabulary(config), torch.device("meta"))
    layers = sparse_layers(model)
    active, dense = count_parameters(model)
    size = micro_batch_size or config.train.micro_batch_size
    footprint = take_step(
        model,
        lambda planned: build_optimizer(config, planned, densities),
        micro_batch_size=size,
        micro_batches=config.train.batch_size // size,
        sequence_tokens=config.data.sequence_tokens,
        precision=config.train.precision.name,
        grad_clip=config.optimizer.grad_clip,
    )
    if layers:
        footprint = with_topology(footprint, config, layers)
    return Plan(layers, active, dense, footprint)


def with_topology(footprint: Footprint, config: Config, layers: dict[str, SparseLinear]) -> Footprint:
    """Add what the topology holds. During an update the values have no gradients, so a probe takes their room first."""
    rows = topology_ledger(
        layers,
        build_topology_schedule(config),
        build_rules(config),
        explore=config.tracking.exploration,
        probe_micro_batches=probe_micro_batches(config),
    )
    held = {row.kind: row.bytes for row in rows}
    gradients = next(row.bytes for row in footprint.rows if row.kind == "gradients")
    more = held.get("exploration", 0) + max(0, held.get("gradient probe", 0) - gradients)
    return replace(footprint, rows=[*footprint.rows, *rows], peak_bytes=footprint.peak_bytes + more)


def largest_micro_batch(config: Config, memory_bytes: float) -> tuple[int, int]:
    """(micro-batch size, peak bytes) of the largest divisor of the batch size whose step fits ``memory_bytes``.

    Raises:
        ConfigError: if not even one sequence at a time fits.
    """
    sizes = [size for size in range(1, config.train.batch_size + 1) if config.train.batch_size % size == 0]
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not: the peak grows with the size
    peaks: dict[int, int] = {}
    while high - low > 1:
        middle = (low + high) // 2
        peaks[middle] = plan_run(config, sizes[middle]).footprint.peak_bytes
        low, high = (middle, high) if peaks[middle] <= memory_bytes else (low, middle)
    if low < 0:
        raise ConfigError(
            f"plan.memory_gib={memory_bytes / 2**30:g}: one sequence of {config.data.sequence_tokens} tokens at a time "
            f"needs {format_bytes(peaks[0])}; lower sparsity.density, data.sequence_tokens or the model's size"
        )
    return sizes[low], peaks[low]


def print_plan(console: Console, compose: Compose, settings: PlanSettings) -> None:
    """The plan of ``compose([])`` beside the same model dense, then what ``settings`` ask for.

    Args:
        compose: the configuration that the command's overrides and further ones give.

    Raises:
        SmetError: see :func:`plan_run` and :func:`largest_micro_batch`; or if densities are asked of a dense model.
    """
    config = compose([])
    plan = plan_run(config)
    if settings.densities and not plan.layers:
        raise ConfigError("plan.densities: every layer of this model is dense; choose a sparse method, as method=smet")
    if plan.layers:
        print_layers(console, plan.layers)
    console.print(bytes_table([row.as_dict() for row in plan.footprint.rows]))
    for line in [*explain_backends(config, plan.layers.values(), torch.device("cpu")), *remarks(config)]:
        console.print(line, soft_wrap=True)
    dense = plan_run(compose(["method=dense"])) if plan.layers else plan
    for line in plan_lines(config, plan, dense):
        console.print(line, soft_wrap=True)
    if settings.densities:
        console.print(densities_table(compose, settings.densities, dense))
    if settings.memory_gib is not None:
        size, peak = largest_micro_batch(config, settings.memory_gib * 2**30)
        console.print(
            f"in {settings.memory_gib:g} GiB: train.micro_batch_size={size}, peak {format_bytes(peak)}", soft_wrap=True
        )


def plan_lines(config: Config, plan: Plan, dense: Plan) -> list[str]:
    """Parameters, peak and operations in words; ``dense`` is the plan of the same model dense."""
    footprint, batch = plan.footprint, config.train.batch_size
    tokens = batch * config.data.sequence_tokens
    return [
        f"parameters   {plan.parameters_active:,} active of {plan.parameters_dense:,} "
        f"({plan.parameters_active / plan.parameters_dense:.1%})",
        f"activations  {format_bytes(footprint.activations_bytes)} in a micro-batch of {config.train.micro_batch_size} "
        f"x {config.data.sequence_tokens} tokens, {config.train.precision.name}",
        f"peak         {format_bytes(footprint.peak_bytes)} in all tensors during a step, dense "
        f"{format_bytes(dense.footprint.peak_bytes)} (ratio {footprint.peak_bytes / dense.footprint.peak_bytes:.3f}); "
        "what the process, torch and the data hold comes on top",
        f"operations   {footprint.flops / 1e12:.4g} TFLOP a step of {tokens:,} tokens as computed, dense "
        f"{dense.footprint.flops / 1e12:.4g} (ratio {footprint.flops / dense.footprint.flops:.3f})",
    ]


def densities_table(compose: Compose, densities: list[float], dense: Plan) -> Table:
    """One row a density: what it holds and computes, against the same model dense."""
    table = Table(title="by density", title_justify="left")
    for column in ("density", "active parameters", "held", "/ dense", "peak", "/ dense", "TFLOP a step"):
        table.add_column(column, justify="right")
    for density in densities:
        plan = plan_run(compose([f"sparsity.density={density}"]))
        held, peak = plan.footprint.state_bytes, plan.footprint.peak_bytes
        table.add_row(
            f"{density:g}",
            f"{plan.parameters_active:,}",
            format_bytes(held),
            f"{held / dense.footprint.state_bytes:.3f}",
            format_bytes(peak),
            f"{peak / dense.footprint.peak_bytes:.3f}",
            f"{plan.footprint.flops / 1e12:.4g}",
        )
    return table
