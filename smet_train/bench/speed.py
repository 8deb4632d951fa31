"""Sparse against dense: single layers over backends and densities, whole training steps, the optimizer, an update.

All arms of a comparison take turns in one process, and a ratio is of medians. The dense arm of a layer is a matrix
product and its two gradients; of a step, the same trainer at ``method=dense``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from smet_train.bench.plots import plot_lines
from smet_train.bench.result import Bar, write_result
from smet_train.bench.settings import SpeedBench
from smet_train.bench.timing import interleaved_seconds, medians
from smet_train.build import build_exploration, build_optimizer, build_topology
from smet_train.config.schema import Config
from smet_train.errors import SmetError
from smet_train.optim import SmetAdamW
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse.sampling import first_index
from smet_train.sparse_model import build_sparse_model, planned_vocabulary
from smet_train.topology import TopologyUpdater
from smet_train.tracking.console import open_console
from smet_train.train.precision import slow_products
from smet_train.train.step import TokenLoss, forward_backward

Compose = Callable[[list[str]], Config]
_SHAPES = ((768, 2048), (2048, 5461))
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# (backend, block, precision, density): the least speed over dense, of single layers.
_LAYER_BARS = {
    ("csr", 1, "fp32", 0.1): 2.0,
    ("csr", 1, "fp32", 0.05): 3.5,
    ("block", 64, "fp32", 0.1): 4.0,
    ("block", 64, "bf16", 0.1): 3.0,
    ("block", 64, "fp32", 0.25): 1.8,
    ("block", 64, "bf16", 0.25): 1.8,
}
# Overrides of each arm of the whole step, and the least speed over dense.
_STEP_ARMS: dict[str, tuple[list[str], float]] = {
    "csr 0.05": (["sparsity.density=0.05", "sparsity.backend=csr"], 1.7),
    "block 64 0.1": (["sparsity.density=0.1", "sparsity.backend=block", "sparsity.block_size=64"], 2.2),
    "densify 0.1": (["sparsity.density=0.1", "sparsity.backend=densify"], 0.9),
}
_OPTIMIZER_BAR, _UPDATE_BAR = 0.2, 0.5


@dataclass
class _Training:
    """A model with its optimizer and topology on random tokens."""

    model: nn.Module
    optimizer: SmetAdamW
    topology: TopologyUpdater
    batch: Tensor
    precision: str

    def step(self) -> None:
        forward_backward(TokenLoss(self.model, self.precision), iter([self.batch]), 1, self.batch.device)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def run_speed(compose: Compose, bench: SpeedBench, command: str) -> None:
    """The whole benchmark: print tables, write ``result.json`` and ``speed.png`` into ``bench.out``."""
    console = open_console()
    precisions = chosen_precisions(bench, console)
    layers = []
    for inputs, outputs in _SHAPES:
        for precision in precisions:
            console.print(f"timing layers from {inputs} to {outputs} features in {precision}, {bench.rounds} rounds")
            layers += time_layers((inputs, outputs), precision, bench)
    print_layers(console, layers)
    if bench.whole_steps:
        console.print(f"timing whole steps, {bench.rounds} rounds")
    steps = time_steps(compose, bench) if bench.whole_steps else {}
    bars = [*layer_bars(layers), *step_bars(steps)]
    out = Path(bench.out)
    path = write_result(out, "speed", bars, {"tokens": bench.tokens, "layers": layers, "steps": steps}, command)
    plot(out / "speed.png", layers)
    for bar in bars:
        console.print(f"{bar.name}: {bar.value:.3g} against {bar.bar:g}: {'holds' if bar.holds else 'does not hold'}")
    console.print(f"figures {path}, plot {out / 'speed.png'}", soft_wrap=True)


def chosen_precisions(bench: SpeedBench, console: Console) -> list[str]:
    """Those of ``bench.precisions``, but for one beside others in which this processor would take hours."""
    slow = {precision: slow_products(torch.device("cpu"), precision) for precision in bench.precisions}
    fast = [precision for precision, reason in slow.items() if reason is None]
    if not fast:
        return bench.precisions
    for precision, reason in slow.items():
        if reason is not None:
            console.print(f"{precision} is left out: {reason}; alone in bench.precisions it is timed", markup=False)
    return fast


def time_layers(shape: tuple[int, int], precision: str, bench: SpeedBench) -> list[dict[str, Any]]:
    """Forward and backward of one layer (I, O): the dense product, and each backend at each density that it can."""
    inputs, outputs = shape
    dtype = _DTYPES[precision]
    x = torch.randn(bench.tokens, inputs).to(dtype).requires_grad_()
    grad_y = torch.randn(bench.tokens, outputs).to(dtype)
    dense = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    arms: dict[str, Callable[[], object]] = {"dense": partial(_forward_backward, dense, x, grad_y)}
    facts: dict[str, dict[str, Any]] = {}
    for backend, block in ((arm.partition(":")[0], int(arm.partition(":")[2] or 1)) for arm in bench.backends):
        for density in bench.densities:
            layout = Layout.from_density(outputs, inputs, density, block)
            layer = SparseLinear(
                layout, first_index(layout, 1), torch.randn(layout.values_shape).to(dtype), None, backend
            )
            name = f"{backend} {block} {density:g}"
            arms[name] = partial(_forward_backward, layer, x, grad_y)
            facts[name] = {"backend": backend, "block": block, "density": density}
    seconds = medians(interleaved_seconds(arms, bench.rounds))
    common = {"in": inputs, "out": outputs, "precision": precision, "dense_ms": seconds["dense"] * 1e3}
    return [
        {**common, **fact, "ms": seconds[name] * 1e3, "speed_over_dense": seconds["dense"] / seconds[name]}
        for name, fact in facts.items()
    ]


def _forward_backward(layer: nn.Module, x: Tensor, grad_y: Tensor) -> None:
    layer(x).backward(grad_y)
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


def time_steps(compose: Compose, bench: SpeedBench) -> dict[str, Any]:
    """Whole steps of the dense and the sparse arms; then the optimizer on the sparse layers, and a topology update."""
    trainings = {"dense": start_training(compose(["method=dense"]))}
    for name, (overrides, _) in _STEP_ARMS.items():
        trainings[name] = start_training(compose(overrides))
    seconds = medians(interleaved_seconds({name: arm.step for name, arm in trainings.items()}, bench.rounds))
    blocks = trainings["block 64 0.1"]
    tokens = blocks.batch.shape[0] * (blocks.batch.shape[1] - 1)
    element = trainings["densify 0.1"]
    moves = iter(range(1, bench.rounds + 2))
    update = {"update": lambda: element.topology.step(next(moves))}
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": {name: tokens / time for name, time in seconds.items()},
        "speed_over_dense": {name: seconds["dense"] / seconds[name] for name in _STEP_ARMS},
        "optimizer_seconds": time_optimizers(element.model, bench),
        "update_over_step": medians(interleaved_seconds(update, bench.rounds))["update"] / seconds["densify 0.1"],
    }


def start_training(config: Config) -> _Training:
    """Everything of a run but its data."""
    vocabulary = planned_vocabulary(config)
    model, densities = build_sparse_model(config, vocabulary, torch.device("cpu"))
    optimizer = build_optimizer(config, model, densities)
    config.topology.interval, config.topology.drop_fraction = 1, 0.2
    layers = sparse_layers(model)
    topology = build_topology(config, layers, densities, optimizer, exploration=build_exploration(config, layers))
    shape = (config.train.micro_batch_size, config.data.sequence_tokens + 1)
    batch = torch.randint(0, vocabulary.vocab_size, shape)
    return _Training(model, optimizer, topology, batch, config.train.precision.name)


def time_optimizers(model: nn.Module, bench: SpeedBench) -> dict[str, float]:
    """A step of SmetAdamW on the values of ``model``'s sparse layers, and of torch's fused AdamW on them dense.

    The values have ages of ten updates, so that local steps are looked up as in the middle of a run.
    """
    layers = list(sparse_layers(model).values())
    values = [nn.Parameter(layer.values.detach().clone()) for layer in layers]
    dense = [nn.Parameter(torch.randn(layer.out_features, layer.in_features)) for layer in layers]
    ours = SmetAdamW(values, topology_moves=True)
    theirs = torch.optim.AdamW(dense, fused=True)
    for parameter in [*values, *dense]:
        parameter.grad = torch.randn_like(parameter)
    for _ in range(10):
        ours.step()
        for parameter in values:
            ours.note_topology_update(parameter)
            ours.state[parameter]["age"][torch.rand(parameter.shape) < 0.2] = 0
    return medians(interleaved_seconds({"smet_adamw": ours.step, "fused_adamw": theirs.step}, bench.rounds))


def layer_bars(layers: list[dict[str, Any]]) -> list[Bar]:
    """The bars of single layers, each at the shape where it is furthest from holding."""
    bars = []
    for (backend, block, precision, density), least in _LAYER_BARS.items():
        wanted = {"backend": backend, "block": block, "precision": precision, "density": density}
        speeds = [row["speed_over_dense"] for row in layers if wanted.items() <= row.items()]
        if speeds:
            name = f"layer: {backend}, block {block}, {precision}, density {density:g}: speed over dense"
            bars.append(Bar(name, min(speeds), least, min(speeds) >= least))
    return bars


def step_bars(steps: dict[str, Any]) -> list[Bar]:
    """The bars of whole steps, of the optimizer and of an update."""
    if not steps:
        return []
    bars = [
        Bar(f"step: {name}: speed over dense", value, _STEP_ARMS[name][1], value >= _STEP_ARMS[name][1])
        for name, value in steps["speed_over_dense"].items()
    ]
    ratio = steps["optimizer_seconds"]["smet_adamw"] / steps["optimizer_seconds"]["fused_adamw"]
    update = steps["update_over_step"]
    return [
        *bars,
        Bar("optimizer at density 0.1 over dense fused AdamW: time", ratio, _OPTIMIZER_BAR, ratio <= _OPTIMIZER_BAR),
        Bar("topology update over a step at density 0.1: time", update, _UPDATE_BAR, update <= _UPDATE_BAR),
    ]


def print_layers(console: Console, layers: list[dict[str, Any]]) -> None:
    """Print one row a layer, precision and backend: milliseconds of a forward and backward, and dense's over them."""
    table = Table(title="one layer, forward and backward, milliseconds and speed over dense", title_justify="left")
    for column in ("in", "out", "precision", "backend", "block", "density", "dense ms", "ms", "speed"):
        table.add_column(column, justify="right")
    for row in layers:
        table.add_row(
            *(str(row[key]) for key in ("in", "out", "precision", "backend", "block")),
            f"{row['density']:g}",
            f"{row['dense_ms']:.1f}",
            f"{row['ms']:.1f}",
            f"{row['speed_over_dense']:.2f}",
        )
    console.print(table)


def plot(path: Path, layers: list[dict[str, Any]]) -> None:
    """Speed over dense by density, a line a backend, a panel a shape and precision: 1 is where it breaks even."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in sorted(layers, key=lambda row: row["density"]):
        panel = panels.setdefault(f"{row['in']} to {row['out']}, {row['precision']}", {})
        xs, ys = panel.setdefault(f"{row['backend']} {row['block']}", ([], []))
        xs.append(row["density"])
        ys.append(row["speed_over_dense"])
    if not panels:
        raise SmetError("bench.backends=[] and bench.densities=[] leave nothing to time", exit_status=2)
    plot_lines(path, list(panels.items()), "density", "speed over dense")
