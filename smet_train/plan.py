"""What a run will take, before any of it is allocated: parameters, bytes by kind, operations, the batch that fits."""

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from smet_train.analysis.footprint import Footprint
from smet_train.analysis.layers import print_layers
from smet_train.analysis.planning import Plan, plan_run
from smet_train.analysis.summary import bytes_table, format_bytes
from smet_train.build import remarks
from smet_train.config.plan_settings import PlanSettings
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.sparse_model import explain_backends

Compose = Callable[[list[str]], Config]


def split_over(config: Config) -> int:
    """How many processes share the state of a run."""
    return config.train.processes if config.train.parallel.name == "fsdp" else 1


def plan_part(config: Config, micro_batch_size: int | None = None) -> Plan:
    """The plan of a process of the run: of all that it holds, be it everything or a part."""
    return plan_run(config, micro_batch_size, split_over=split_over(config))


def micro_batch_sizes(config: Config) -> list[int]:
    """Those that a run may have, from the smallest: what divides a process's share of the batch, and with a fused step,
    which accumulates nothing, the whole."""
    own = config.train.batch_size // config.train.processes
    least = own if config.train.fused_backward_step else 1
    return [size for size in range(least, own + 1) if own % size == 0]


def largest_micro_batch(config: Config, memory_bytes: float) -> tuple[int, int]:
    """(micro-batch size, peak bytes) of the largest of :func:`micro_batch_sizes` whose step fits ``memory_bytes``.

    Raises:
        ConfigError: if not even the smallest fits.
    """
    sizes = micro_batch_sizes(config)
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not: the peak grows with the size
    peaks: dict[int, int] = {}
    while high - low > 1:
        middle = (low + high) // 2
        peaks[middle] = plan_part(config, sizes[middle]).footprint.peak_bytes
        low, high = (middle, high) if peaks[middle] <= memory_bytes else (low, middle)
    if low < 0:
        who, lower = f"one sequence of {config.data.sequence_tokens} tokens at a time needs", "lower "
        if config.train.fused_backward_step:
            who = (
                f"train.fused_backward_step=true takes the train.batch_size={sizes[0]} sequences of "
                f"{config.data.sequence_tokens} tokens at a time, which need"
            )
            lower = "leave it out with train.micro_batch_size=1, or lower train.batch_size, "
        raise ConfigError(
            f"plan.memory_gib={memory_bytes / 2**30:g}: {who} {format_bytes(peaks[0])}; {lower}sparsity.density, "
            "data.sequence_tokens or the model's size"
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
    plan = plan_part(config)
    if settings.densities and not plan.layers:
        raise ConfigError("plan.densities: every layer of this model is dense; choose a sparse method, as method=smet")
    if plan.layers:
        print_layers(console, plan.layers)
    console.print(bytes_table([row.as_dict() for row in plan.footprint.rows]))
    unseen = ["causal      is seen by smet-train when it builds the model: a plan has no numbers to see it by"]
    for line in [
        *explain_backends(config, plan.layers, torch.device("cpu")),
        *remarks(config),
        *plan.remarks,
        *(unseen if config.model.family.name == "auto" else []),
    ]:
        console.print(line, soft_wrap=True)
    dense = plan_part(compose(["method=dense"])) if plan.layers else plan
    for line in plan_lines(config, plan, dense):
        console.print(line, soft_wrap=True)
    if settings.densities:
        console.print(densities_table(compose, settings.densities, dense))
    if settings.ranks:
        of_all = (plan, dense)
        if split_over(config) > 1:
            of_all = (plan_run(config), plan_run(compose(["method=dense"])))
        console.print(ranks_table(of_all[0].footprint, of_all[1].footprint, settings.ranks))
    if settings.memory_gib is not None:
        size, peak = largest_micro_batch(config, settings.memory_gib * 2**30)
        of_each = f" of each of {config.train.processes} processes" if config.train.processes > 1 else ""
        whole = size == micro_batch_sizes(config)[-1]
        console.print(
            f"in {settings.memory_gib:g} GiB: train.micro_batch_size={size}, peak {format_bytes(peak)}"
            + (f": the whole batch{of_each}, and more would fit" if whole else ""),
            soft_wrap=True,
        )


def plan_lines(config: Config, plan: Plan, dense: Plan) -> list[str]:
    """Parameters, peak and operations in words; ``dense`` is the plan of the same model dense."""
    footprint, batch = plan.footprint, config.train.batch_size
    tokens = batch * config.data.sequence_tokens
    copy = [
        f"saving       {format_bytes(footprint.saved_bytes)} more in main memory, for the copy that "
        "checkpoint.asynchronous=true writes in the background"
    ]
    return [
        *_parallel_lines(config, plan, dense),
        f"parameters   {plan.parameters_active:,} active of {plan.parameters_dense:,} "
        f"({plan.parameters_active / plan.parameters_dense:.1%})",
        f"activations  {format_bytes(footprint.activations_bytes)} in a micro-batch of {config.train.micro_batch_size} "
        f"x {config.data.sequence_tokens} tokens, {config.train.precision.name}",
        f"peak         {format_bytes(footprint.peak_bytes)} in all tensors during a step, dense "
        f"{format_bytes(dense.footprint.peak_bytes)} (ratio {footprint.peak_bytes / dense.footprint.peak_bytes:.3f}); "
        "what the process, torch and the data hold comes on top",
        f"operations   {footprint.flops / 1e12:.4g} TFLOP a step of {tokens:,} tokens as computed, dense "
        f"{dense.footprint.flops / 1e12:.4g} (ratio {footprint.flops / dense.footprint.flops:.3f})",
        *(copy if config.checkpoint.asynchronous else []),
    ]


def _parallel_lines(config: Config, plan: Plan, dense: Plan) -> list[str]:
    if config.train.parallel.name != "fsdp":
        return []
    if split_over(config) == 1:
        return ["parallel     figures are of a process that holds everything; write train.processes=N for one of N"]
    ratio = f" (ratio {plan.sent_bytes / dense.sent_bytes:.3f})" if plan is not dense else ""
    return [
        f"parallel     figures are of one of {config.train.processes} processes that hold a part each; the operations "
        "are those of all",
        f"sent         {format_bytes(plan.sent_bytes)} by each process in a step, for parameters and gradients, dense "
        f"{format_bytes(dense.sent_bytes)}{ratio}",
    ]


def ranks_table(footprint: Footprint, dense: Footprint, ranks: list[int]) -> Table:
    """One row a number of processes: state on each, and what each sends, worked out from the bytes by kind.

    Replicated, every process holds all of it, and a ring sums the gradients: 2 (N - 1) / N of their bytes go out of
    each. Sharded, each holds an N-th. The activations of a micro-batch come on top either way.
    """
    table = Table(title="by number of processes, worked out", title_justify="left")
    for column in ("processes", "state of each, replicated", "sharded", "sent by each in a step", "dense", "ratio"):
        table.add_column(column, justify="right")
    sparse_bytes, dense_bytes = gradient_bytes(footprint), gradient_bytes(dense)
    for n in ranks:
        table.add_row(
            str(n),
            format_bytes(footprint.state_bytes),
            format_bytes(-(-footprint.state_bytes // n)),
            format_bytes(ring_bytes(sparse_bytes, n)),
            format_bytes(ring_bytes(dense_bytes, n)),
            f"{sparse_bytes / dense_bytes:.3f}",
        )
    return table


def ring_bytes(n_bytes: int, processes: int) -> float:
    """What goes out of each process when a ring of them sums ``n_bytes``."""
    return 2 * (processes - 1) / processes * n_bytes


def gradient_bytes(footprint: Footprint) -> int:
    """Of all gradients, those of what is dense included: as many as of the parameters."""
    return sum(row.bytes for row in footprint.rows if row.kind in ("values", "dense rest: parameters"))


def densities_table(compose: Compose, densities: list[float], dense: Plan) -> Table:
    """One row a density: what it holds and computes, against the same model dense."""
    table = Table(title="by density", title_justify="left")
    for column in ("density", "active parameters", "held", "/ dense", "peak", "/ dense", "TFLOP a step"):
        table.add_column(column, justify="right")
    for density in densities:
        plan = plan_part(compose([f"sparsity.density={density}"]))
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
