"""A step of several processes over a slow link, sparse over dense.

    python benchmarks/slow_link.py --mbit 100 --density 0.1 --out benchmarks/results/DATE_slow_link.json

Both arms are in the same processes and take turns; medians of --rounds. The processes share a network namespace of
their own, whose loopback ``tc`` throttles to --mbit: that takes Linux, root, iproute2 and util-linux. A token bucket
counts what both processes send, so each has half of it.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from smet_train.bench.result import measured_on
from smet_train.build import build_optimizer
from smet_train.config.compose import compose
from smet_train.sparse.ledger import count_parameters
from smet_train.sparse_model import build_sparse_model, planned_vocabulary
from smet_train.train.processes import Processes, joined
from smet_train.train.shared_gradients import SharedGradients
from smet_train.train.step import forward_backward

INSIDE = "SMET_SLOW_LINK"
CPU = torch.device("cpu")


def throttled(mbit: int, processes: int, words: list[str]) -> int:
    """Run this script as ``processes`` processes in a namespace whose loopback carries ``mbit`` Mbit/s."""
    shape = (
        f"ip link set lo mtu 1500 && tc qdisc add dev lo root tbf rate {mbit}mbit burst 256kb latency 400ms"
        if mbit
        else "true"
    )
    run = shlex.join(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1",
         "--master-port=29411", sys.argv[0], *words]
    )  # fmt: skip
    command = ["unshare", "--net", "sh", "-c", f"ip link set lo up && {shape} && exec {run}"]
    return subprocess.run(command, env={**os.environ, INSIDE: "1", "OMP_NUM_THREADS": "1"}, check=False).returncode


def arm(group: Processes, overrides: list[str], micro_batches: int) -> tuple[Callable[[], object], dict[str, int]]:
    """An optimizer step of a model of its own, and what it is."""
    config = compose(overrides)
    vocabulary = planned_vocabulary(config)
    model, densities = build_sparse_model(config, vocabulary, CPU)
    optimizer = build_optimizer(config, model, densities)
    loss_of = SharedGradients(group, model, config.train.precision.name)
    torch.manual_seed(group.rank)
    batch = torch.randint(vocabulary.vocab_size, (config.train.micro_batch_size, config.data.sequence_tokens + 1))

    def step() -> None:
        forward_backward(loss_of, iter([batch] * micro_batches), micro_batches, CPU)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    active, dense = count_parameters(model)
    group.sent_bytes = 0
    step()
    return step, {"parameters_active": active, "parameters_dense": dense, "sent_bytes": group.sent_bytes}


def seconds(step: Callable[[], object]) -> float:
    dist.barrier()
    started_s = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - started_s


def measure(group: Processes, given: argparse.Namespace) -> dict[str, object]:
    common = ["+experiment=demo", *given.overrides]
    names = {"dense": "method=dense", "sparse": f"sparsity.density={given.density}"}
    arms = {name: arm(group, [*common, override], given.accumulate) for name, override in names.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(given.rounds):
        for name, (step, _) in arms.items():
            times[name].append(seconds(step))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "step_s": medians,
        "times_s": times,
        "sizes": {name: sizes for name, (_, sizes) in arms.items()},
        "ratio": medians["sparse"] / medians["dense"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=int, default=100, help="of the link; 0 does not throttle")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of each process in a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of the model")
    given = parser.parse_args()
    if INSIDE not in os.environ:
        return throttled(given.mbit, given.processes, sys.argv[1:])
    with joined("cpu", 1, 1) as group:
        figures = measure(group, given)
        if not group.leads:
            return 0
    command = shlex.join(["python", "benchmarks/slow_link.py", *sys.argv[1:]])
    result = {"name": "slow_link", "command": command, **measured_on(), "link_mbit": given.mbit, "figures": figures}
    print(json.dumps({name: figures[name] for name in ("step_s", "sizes", "ratio")}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
