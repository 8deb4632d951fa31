"""What larger models take on many GPUs, worked out from the bytes and operations of one planned step.

    python benchmarks/scaling.py --out benchmarks/results/DATE_scaling.json

Nothing is timed. The bytes of a model's state by kind, and the operations of its step as computed, are those of
``smet-plan``, which tests hold to what a real run holds; the rest is arithmetic, with the assumptions that are printed.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from smet_train.analysis.planning import Plan, plan_run
from smet_train.bench.result import measured_on
from smet_train.config.compose import compose
from smet_train.plan import gradient_bytes, ring_bytes

MODELS = ("1b", "7b", "70b")
DENSITIES = (0.1, 0.25)
PROCESSES = (1, 8, 64, 1024)
GIB = 2**30
TOKENS = 32_768  # that each process trains on in a step: 16 windows of 2,048
FLOP_PER_S = 400e12  # that a GPU is taken to reach: two fifths of an H100's dense bf16
BACKWARD = 2 / 3  # of a step's operations; gradients are sent meanwhile


def planned(model: str, *overrides: str) -> Plan:
    return plan_run(compose(["+experiment=llama_1b_density0.1", f"model=llama_{model}", *overrides]))


def rows(dense: Plan, sparse: Plan) -> list[dict[str, float]]:
    """One row a number of processes; bytes are those of each process."""
    config = compose(["+experiment=llama_1b_density0.1"])
    step_tokens = config.train.batch_size * config.data.sequence_tokens
    backward_s = sparse.footprint.flops / step_tokens * TOKENS * BACKWARD / FLOP_PER_S
    found = []
    for n in PROCESSES:
        sent = ring_bytes(gradient_bytes(sparse.footprint), n)
        found.append(
            {
                "processes": n,
                "replicated_bytes": sparse.footprint.state_bytes,
                "sharded_bytes": -(-sparse.footprint.state_bytes // n),
                "dense_bytes": dense.footprint.state_bytes,
                "sent_bytes": sent,
                "dense_sent_bytes": ring_bytes(gradient_bytes(dense.footprint), n),
                "hides_from_bytes_per_s": sent / backward_s,
            }
        )
    return found


def markdown(model: str, density: float, found: list[dict[str, float]]) -> list[str]:
    return [
        " | ".join(
            [
                f"| {model.upper()}",
                f"{density:g}",
                f"{row['processes']:,}",
                f"{row['replicated_bytes'] / GIB:.1f}",
                f"{row['sharded_bytes'] / GIB:.2f}",
                f"{row['dense_bytes'] / GIB:.1f}",
                f"{row['sent_bytes'] / GIB:.2f}",
                f"{row['dense_sent_bytes'] / GIB:.2f}",
                f"{row['hides_from_bytes_per_s'] / 1e9:.2f} |",
            ]
        )
        for row in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures = {}
    for model in MODELS:
        dense = planned(model, "method=dense")
        for density in DENSITIES:
            figures[f"{model} {density:g}"] = rows(dense, planned(model, f"sparsity.density={density}"))
    for key, found in figures.items():
        model, density = key.split()
        print("\n".join(markdown(model, float(density), found)))
    if given.out:
        assumed = {"tokens_of_a_process": TOKENS, "flop_per_s": FLOP_PER_S, "backward": BACKWARD}
        command = shlex.join(["python", "benchmarks/scaling.py", *sys.argv[1:]])
        result = {"name": "scaling", "command": command, **measured_on(), "assumed": assumed, "figures": figures}
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
