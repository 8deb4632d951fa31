"""CPU seconds until a run has made its first step, and of the commands that train nothing.

    python benchmarks/start_up.py [--repeats 5] [--against CHECKOUT] [--out FILE]

A run is `smet-train +debug=quick` as a person types it: a new interpreter, its tokenizer cached. What its process has
used of the processor is read when the first `train` event stands in metrics.jsonl. `--help` and `--cfg job` count to
their end. With `--against` each start is followed by one of another checkout, under the same interpreter and libraries;
the medians and their ratio are printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from smet_train.bench.result import measured_on

HERE = Path(__file__).resolve().parents[1]
COMMANDS = {"to the first step": ["+debug=quick"], "--help": ["--help"], "--cfg job": ["--cfg", "job"]}
BARS_S = {"to the first step": 6.5, "--help": 0.5, "--cfg job": 0.8}
_POLL_S = 0.002


def start(checkout: Path, words: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """`smet-train` of ``checkout``, typed in ``folder``."""
    command = [sys.executable, "-m", "smet_train", *words]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def to_the_first_step_s(checkout: Path, words: list[str], folder: Path) -> float:
    """CPU seconds of the process when it has written its first step; it is ended then."""
    metrics = folder / "run" / "metrics.jsonl"
    process = start(checkout, [*words, "hydra.run.dir=run"], folder)
    watched = psutil.Process(process.pid)
    while True:
        used = watched.cpu_times()
        if metrics.is_file() and b'"event": "train"' in metrics.read_bytes():
            process.kill()
            process.wait()
            return used.user + used.system
        if process.poll() is not None:
            raise SystemExit(f"the run of {checkout} ended with status {process.returncode} before its first step")
        time.sleep(_POLL_S)


def to_the_end_s(checkout: Path, words: list[str], folder: Path) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if start(checkout, words, folder).wait() != 0:
        raise SystemExit(f"smet-train {' '.join(words)} of {checkout} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    checkouts = {"here": HERE, **({"against": given.against.resolve()} if given.against else {})}
    figures: dict[str, dict[str, list[float]]] = {}
    for name, words in COMMANDS.items():
        measure = to_the_first_step_s if name == "to the first step" else to_the_end_s
        found: dict[str, list[float]] = {arm: [] for arm in checkouts}
        for repeat in range(-1, given.repeats):  # the first fills caches of files and of compiled code
            for arm, checkout in checkouts.items():
                with tempfile.TemporaryDirectory() as folder:
                    seconds = measure(checkout, words, Path(folder))
                if repeat >= 0:
                    found[arm].append(seconds)
        figures[name] = found
        here_s = statistics.median(found["here"])
        told = f"{name}: {here_s:.2f} s, {min(found['here']):.2f} to {max(found['here']):.2f} (bar {BARS_S[name]} s)"
        if given.against:
            against_s = statistics.median(found["against"])
            told += f"; against {against_s:.2f} s, ratio {here_s / against_s:.3f}"
        print(told, flush=True)
    if given.out is not None:
        result = {"command": " ".join(["python", *sys.argv]), **measured_on(), "bars_s": BARS_S, "cpu_seconds": figures}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
