"""Peak memory and speed of a training process: ours against transformers' own LLaMA under torch's AdamW.

Each process trains a few steps on random tokens and tells by how much its resident memory has peaked above what its
imports took. Processes of both arms take turns. Both compute in fp32 on the same shapes.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from smet_train.bench.settings import MemoryBench
from smet_train.offspring import python_of_children

_MEMORY_BAR, _SPEED_BAR, _PREDICTION_TOLERANCE = 0.45, 1.2, 0.10
_ARMS: dict[str, list[str]] = {
    "transformers": [],
    "ours": [],
    "ours, activation checkpointing": ["train.activation_checkpointing=true"],
    "ours, activation checkpointing, freed memory released": [
        "train.activation_checkpointing=true",
        "train.release_freed_memory=true",
    ],
    "ours, blocks of 64": ["sparsity.backend=block", "sparsity.block_size=64"],
    "ours, dense": ["method=dense"],
}


def run_memory(overrides: list[str], bench: MemoryBench, command: str) -> None:
    """The whole benchmark: print the table and write ``result.json`` into ``bench.out``.

    Args:
        overrides: of the experiment that is trained.
    """
    from rich.table import Table

    from smet_train.analysis.planning import plan_run
    from smet_train.bench.result import Bar, write_result
    from smet_train.config.compose import compose
    from smet_train.tracking.console import open_console

    console = open_console()
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in _ARMS}
    for number in range(1, bench.rounds + 1):
        for name, more in _ARMS.items():
            facts = _in_a_process(name, [*overrides, *more], bench.steps)
            measured[name].append(facts)
            console.print(
                f"round {number} of {bench.rounds}, {name}: {facts['peak_bytes'] / 2**20:,.0f} MiB, "
                f"{facts['tokens_per_s']:,.0f} tokens/s",
                soft_wrap=True,
            )
    arms: dict[str, dict[str, Any]] = {
        name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in measured.items()
    }
    base = arms["transformers"]
    table = Table(title="a training process", title_justify="left")
    for column in ("arm", "peak above imports, MiB", "/ transformers", "planned, MiB", "tokens/s", "/ transformers"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, facts in arms.items():
        facts["memory_ratio"] = facts["peak_bytes"] / base["peak_bytes"]
        facts["speed_ratio"] = facts["tokens_per_s"] / base["tokens_per_s"]
        if name != "transformers":
            planned_bytes = plan_run(compose([*overrides, *_ARMS[name]])).footprint.peak_bytes
            facts["planned_bytes"] = planned_bytes
            facts["planned_over_measured"] = planned_bytes / facts["peak_bytes"]
        table.add_row(
            name,
            f"{facts['peak_bytes'] / 2**20:,.0f}",
            f"{facts['memory_ratio']:.3f}",
            f"{facts['planned_bytes'] / 2**20:,.0f}" if "planned_bytes" in facts else "-",
            f"{facts['tokens_per_s']:,.0f}",
            f"{facts['speed_ratio']:.2f}",
        )
    console.print(table)
    bars = []
    for name in list(_ARMS)[1:4]:
        facts = arms[name]
        memory, speed, planned = facts["memory_ratio"], facts["speed_ratio"], facts["planned_over_measured"]
        bars += [
            Bar(f"{name}: peak memory over transformers", memory, _MEMORY_BAR, memory <= _MEMORY_BAR),
            Bar(f"{name}: tokens/s over transformers", speed, _SPEED_BAR, speed >= _SPEED_BAR),
            Bar(
                f"{name}: planned over measured peak, off by",
                abs(planned - 1),
                _PREDICTION_TOLERANCE,
                abs(planned - 1) <= _PREDICTION_TOLERANCE,
            ),
        ]
    path = write_result(Path(bench.out), "memory", bars, {"arms": arms, "runs": measured}, command)
    for bar in bars:
        console.print(f"{bar.name}: {bar.value:.3f} against {bar.bar:g}: {'holds' if bar.holds else 'does not hold'}")
    console.print(f"figures {path}", soft_wrap=True)


def _in_a_process(name: str, overrides: list[str], steps: int) -> dict[str, float]:
    """Run one arm in a fresh interpreter."""
    from smet_train.errors import SmetError

    task = json.dumps({"ours": name != "transformers", "overrides": overrides, "steps": steps})
    done = subprocess.run(
        [*python_of_children(), "-m", "smet_train.bench.memory"],
        input=task,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SmetError(f"arm {name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure_process(ours: bool, overrides: list[str], steps: int) -> dict[str, float]:
    """Train ``steps`` steps in this process; the first is not timed."""
    import torch
    from torch import nn

    from smet_train.build import build_optimizer
    from smet_train.config.compose import compose
    from smet_train.sparse_model import build_sparse_model, planned_vocabulary
    from smet_train.tracking.resources import peak_rss_bytes
    from smet_train.train.heap import release_freed_memory
    from smet_train.train.imports import import_what_steps_use
    from smet_train.train.step import TokenLoss, forward_backward

    config = compose(overrides)
    vocabulary = planned_vocabulary(config)
    torch.manual_seed(0)
    shape = (config.train.micro_batch_size, config.data.sequence_tokens + 1)
    batch = torch.randint(0, vocabulary.vocab_size, shape)
    import_what_steps_use("cpu")  # both arms, as both have imported transformers
    before = peak_rss_bytes()
    if ours and config.train.release_freed_memory:
        release_freed_memory()
    if not ours:
        config.sparsity.enabled = False
        config.train.activation_checkpointing = False
    model, densities = build_sparse_model(config, vocabulary, torch.device("cpu"))
    optimizer: torch.optim.Optimizer = (
        build_optimizer(config, model, densities) if ours else torch.optim.AdamW(model.parameters())
    )

    loss_of = TokenLoss(model, config.train.precision.name)

    def step() -> None:
        if ours:
            forward_backward(loss_of, iter([batch]), 1, batch.device)
        else:
            model(input_ids=batch[:, :-1], labels=batch[:, :-1], use_cache=False).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = []
    for _ in range(steps):
        started_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started_s)
    tokens = shape[0] * (shape[1] - 1)
    return {"peak_bytes": peak_rss_bytes() - before, "tokens_per_s": tokens / median(seconds[1:])}


if __name__ == "__main__":
    print(json.dumps(measure_process(**json.loads(sys.stdin.read()))))
