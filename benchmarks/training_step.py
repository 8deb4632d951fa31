"""Time and memory of one training step, sparse against dense, both arms interleaved in one process.

    python benchmarks/training_step.py [--out benchmarks/results] [--hidden 512 --layers 4 …]

A step is forward, backward, clipping and SmetAdamW over one micro-batch of a randomly initialised LLaMA. The arms take
turns step by step, so that whatever else the machine does hits them alike; the figures are medians. Bytes are those of
parameters, gradients, optimizer state and index, counted from the tensors that exist after the last step; the ratio's
denominator is the dense arm's.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from smet_train.bench.result import measured_on
from smet_train.models import ModelSpec, build_model, default_projections
from smet_train.optim import SmetAdamW, parameter_groups
from smet_train.sparse import sparsify
from smet_train.sparse.ledger import measure
from smet_train.train.step import forward_backward


@dataclass
class Arm:
    """A model with its optimizer, and the times of its steps."""

    name: str
    model: nn.Module
    optimizer: SmetAdamW
    seconds: list[float]

    def step(self, batch: Tensor) -> None:
        started_s = time.perf_counter()
        forward_backward(self.model, iter([batch]), 1, batch.device, "fp32")
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if batch.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - started_s)

    def state_bytes(self) -> int:
        return sum(row.bytes for row in measure(self.model, self.optimizer))


def build_arm(density: float, backend: str, options: argparse.Namespace, device: torch.device) -> Arm:
    """``density`` 1 is the dense arm: plain ``nn.Linear``."""
    spec = ModelSpec(
        family="llama",
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        layers=options.layers,
        heads=options.heads,
    )
    model = build_model(spec, vocab_size=options.vocab, sequence_tokens=options.tokens, eos_id=0, seed=1)
    densities = {}
    if density < 1:
        patterns = default_projections("llama", model)
        densities = dict.fromkeys(sparsify(model, patterns, density=density, seed=1, backend=backend), density)
    model = model.to(device).train()
    groups = parameter_groups(
        model, densities, lr_density_rule="sqrt", weight_decay=0.0, topology_moves=bool(densities)
    )
    name = f"{backend} {density:g}" if density < 1 else "dense"
    return Arm(name, model, SmetAdamW(groups, lr=1e-3), [])


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an arm, the dense one first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arms = [build_arm(1.0, "densify", options, device)]
    arms += [build_arm(density, "densify", options, device) for density in options.densities]
    batch = torch.randint(0, options.vocab, (options.batch, options.tokens + 1), device=device)
    for _ in range(options.steps + options.warmup):
        for arm in arms:
            arm.step(batch)
    dense_s, dense_bytes = median(arms[0].seconds[options.warmup :]), arms[0].state_bytes()
    return [
        {
            "arm": arm.name,
            "step_s": (step_s := median(arm.seconds[options.warmup :])),
            "time_ratio": step_s / dense_s,
            "state_bytes": arm.state_bytes(),
            "bytes_ratio": arm.state_bytes() / dense_bytes,
        }
        for arm in arms
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=1376)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder that keeps the result as JSON")
    options = parser.parse_args()
    rows = compare(options)
    print(f"{'arm':<16}{'ms a step':>12}{'time ratio':>12}{'state MiB':>12}{'bytes ratio':>12}")
    for row in rows:
        print(
            f"{row['arm']:<16}{1000 * row['step_s']:>12.1f}{row['time_ratio']:>12.2f}"
            f"{row['state_bytes'] / 2**20:>12.1f}{row['bytes_ratio']:>12.3f}"
        )
    command = " ".join(["python", *sys.argv])
    result = {"benchmark": "training_step", **measured_on(), "command": command, "rows": rows}
    print(json.dumps(result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{result['date']}_training_step.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
