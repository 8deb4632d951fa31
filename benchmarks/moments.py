"""Moments in 8 bits beside those in fp32: bytes held, time of the optimizer's step, and the losses of whole runs.

    python benchmarks/moments.py OUT [--seeds 1 2 3] [OVERRIDE ...]

Bytes are those of LLaMA 130m at density 0.1. Steps take turns in one process on as many values, whose ages are of ten
updates. Runs are of ``+experiment=demo`` with the overrides, a run folder each in OUT; typed again, finished runs stay.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch import nn

from smet_train.analysis.planning import plan_run
from smet_train.bench.result import write_result
from smet_train.bench.timing import interleaved_seconds, medians
from smet_train.config.compose import compose
from smet_train.job import run_training
from smet_train.optim import SmetAdamW
from smet_train.tracking.jsonl import read_events

FORMATS = ("fp32", "fp8")
VALUES, ROUNDS = 8_000_000, 21
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def held_bytes() -> dict[str, Any]:
    """Bytes of moments, and of all that is held between steps and of gradients; of the model, sparse and rest."""
    held = {}
    for moments in FORMATS:
        rows = plan_run(compose(["+experiment=llama_130m_density0.1", f"optimizer.moments={moments}"])).footprint.rows
        held[moments] = {
            "moments": sum(row.bytes for row in rows if row.kind.endswith("moments")),
            "all": sum(row.bytes for row in rows),
        }
    return {**held, "ratio": {kind: held["fp8"][kind] / held["fp32"][kind] for kind in ("moments", "all")}}


def step_seconds() -> dict[str, Any]:
    """Median seconds of a step by the precision of the values, and fp8 over fp32."""
    times: dict[str, Any] = {}
    for precision, dtype in DTYPES.items():
        arms = {moments: started_step(dtype, moments) for moments in FORMATS}
        seconds = medians(interleaved_seconds(arms, ROUNDS))
        times[precision] = {**seconds, "ratio": seconds["fp8"] / seconds["fp32"]}
    return times


def started_step(dtype: torch.dtype, moments: str) -> Callable[[], None]:
    """The step of an optimizer that has lived through ten updates."""
    values = nn.Parameter(torch.randn(VALUES).to(dtype))
    values.grad = torch.randn(VALUES).to(dtype)
    optimizer = SmetAdamW([values], topology_moves=True, moments=moments)
    for _ in range(10):
        optimizer.step()
        optimizer.note_topology_update(values)
        optimizer.state[values]["age"][torch.rand(VALUES) < 0.2] = 0
    return optimizer.step


def validation_losses(out: Path, seeds: list[int], overrides: list[str]) -> dict[str, Any]:
    """The last validation loss of each run, nats, and the differences between the two of a seed."""
    losses: dict[str, dict[str, float]] = {moments: {} for moments in FORMATS}
    for seed in seeds:
        for moments in FORMATS:
            folder = out / f"seed{seed}_{moments}"
            own = [f"seed={seed}", f"optimizer.moments={moments}"]
            run_training(compose(["+experiment=demo", *overrides, *own]), folder, Console(quiet=True))
            events = read_events(folder / "metrics.jsonl")
            if events[-1].get("reason") != "finished":
                raise SystemExit(f"the run in {folder} was stopped; type the same command to go on")
            evaluations = [event["loss"] for event in events if event["event"] == "eval"]
            losses[moments][str(seed)] = evaluations[-1]
            print(f"seed {seed}, {moments}: {evaluations[-1]:.4f}", flush=True)
    differences = [losses["fp8"][str(seed)] - losses["fp32"][str(seed)] for seed in seeds]
    mean = {moments: fmean(losses[moments].values()) for moments in FORMATS}
    return {"overrides": overrides, "validation": losses, "mean": mean, "fp8_minus_fp32": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description="Moments in 8 bits beside those in fp32.")
    parser.add_argument("out", type=Path, help="folder of result.json and the runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="of the runs; none: no runs")
    arguments, overrides = parser.parse_known_args()
    held = held_bytes()
    print(f"bytes, fp8 over fp32: {held['ratio']}")
    seconds = step_seconds()
    print(f"seconds of a step, fp8 over fp32: { {key: round(times['ratio'], 3) for key, times in seconds.items()} }")
    losses = validation_losses(arguments.out, arguments.seeds, overrides) if arguments.seeds else {}
    command = shlex.join(["python", *sys.argv])
    figures = {"values": VALUES, "rounds": ROUNDS, "bytes": held, "step_seconds": seconds, "losses": losses}
    print(f"figures {write_result(arguments.out, 'moments', [], figures, command)}")


if __name__ == "__main__":
    main()
