"""What a checkpoint costs: flushing and checksums, what the loop waits for, and bytes beside dense.

    python benchmarks/checkpointing.py --out benchmarks/results/DATE_checkpointing.json

Arms are interleaved in one process; medians of --repeats.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import xxhash
from safetensors import safe_open

from smet_train.bench.result import measured_on
from smet_train.build import build_data, build_run
from smet_train.config.compose import compose
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import files, loop
from smet_train.train.checkpoint import Keep, save_checkpoint
from smet_train.train.run import Run
from smet_train.train.saver import Saver
from smet_train.train.signals import StopRequest
from smet_train.train.state import capture

DEFAULT_INTERVAL_STEPS = compose(["data=python_source"]).checkpoint.interval
OVERRIDES = [
    "+experiment=demo", "model=llama_60m", "sparsity.density=0.1", "train.steps=10000", "topology.interval=100",
]  # fmt: skip


class NoFlush(files.Disk):
    def sync(self, path: Path) -> None:
        pass


class NoChecksum:
    def __init__(self, *_: object) -> None:
        pass

    def update(self, _: object) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


def seconds(action: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


def plain_save(run: Run, folder: Path, step: int) -> None:
    """A save that flushes nothing and has no checksums."""
    disk, xxh3 = files.disk, xxhash.xxh3_128
    files.disk, files.xxhash.xxh3_128 = NoFlush(), NoChecksum
    try:
        save_checkpoint(folder, step, capture(run), Keep(2))
    finally:
        files.disk, files.xxhash.xxh3_128 = disk, xxh3


def measure(run: Run, folder: Path, repeats: int) -> dict[str, float]:
    def one_step() -> None:
        loop.take_sound_step(run)
        run.state.step += 1

    loop.set_learning_rate(run)
    one_step()
    times: dict[str, list[float]] = {name: [] for name in ("step", "plain", "safe", "sync_wait", "async_wait")}
    writers = {name: Saver(folder / name, Keep(2), asynchronous=name == "async") for name in ("sync", "async")}
    for repeat in range(1, repeats + 1):
        times["step"].append(seconds(one_step))
        times["plain"].append(seconds(lambda step=repeat: plain_save(run, folder / "plain", step)))
        times["safe"].append(seconds(lambda step=repeat: save_checkpoint(folder / "safe", step, capture(run), Keep(2))))
        for name, writer in writers.items():
            times[f"{name}_wait"].append(seconds(lambda w=writer, step=repeat: w.save(step, capture(run))))
            writer.close()
    return {f"{name}_s": statistics.median(values) for name, values in times.items()}


def move_topology(run: Run, updates: int) -> None:
    """Age the topology as training does: without updates, ages would be all alike and take no room."""
    for _ in range(updates):
        run.state.step += run.topology.schedule.interval
        run.topology.step(run.state.step)


def bytes_of_sparse_layers(run: Run, checkpoint: Path) -> tuple[int, int]:
    """What the checkpoint holds of the sparse layers, and what that of dense layers under AdamW would: fp32 weight and
    two moments for each site."""
    layers = sparse_layers(run.model)
    kept = {f"{name}.{tensor}" for name in layers for tensor in ("values", "packed_index")}
    held = 0
    for part in ("model", "optimizer"):
        with safe_open(checkpoint / f"{part}.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                if name in kept or name.rpartition(".")[0] in kept:
                    held += file.get_tensor(name).nbytes
    return held, sum(12 * layer.layout.weights for layer in layers.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = compose(OVERRIDES)
    with tempfile.TemporaryDirectory() as scratch, closing(build_data(config, None)) as data:
        folder = Path(scratch)
        run = build_run(config, folder, data, StopRequest())
        times = measure(run, folder, arguments.repeats)
        move_topology(run, 50)
        path = save_checkpoint(folder / "size", 1, capture(run), Keep(1))
        checkpoint_bytes = sum(file.stat().st_size for file in path.iterdir())
        sparse_bytes, dense_bytes = bytes_of_sparse_layers(run, path)
    safety = (times["safe_s"] - times["plain_s"]) / (DEFAULT_INTERVAL_STEPS * times["step_s"])
    figures = {
        "flushes and checksums, share of wall time at the default interval": (safety, 0.03),
        "wait for an asynchronous save over a synchronous one": (times["async_wait_s"] / times["sync_wait_s"], 0.10),
        "bytes of the sparse layers over dense AdamW, over the density": (
            sparse_bytes / dense_bytes / config.sparsity.density, 1.10
        ),
    }  # fmt: skip
    for name, (value, bar) in figures.items():
        print(f"{name}: {value:.4f} (bar {bar}, {'holds' if value <= bar else 'falls short'})")
    print({name: round(value, 4) for name, value in times.items()}, f"{checkpoint_bytes / 2**20:.0f} MiB")
    if arguments.out:
        content = {
            "command": shlex.join(["python", *sys.argv]),
            **measured_on(),
            "overrides": OVERRIDES,
            "medians": times,
            "checkpoint_bytes": checkpoint_bytes,
            "bars": [
                {"name": name, "value": value, "bar": bar, "holds": value <= bar}
                for name, (value, bar) in figures.items()
            ],
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
