"""A long run whose topology moves all the time: do resident memory and open files stay as they are?

    python benchmarks/soak.py [--minutes 15] [--out FILE] [overrides …]

Starts ``smet-train +experiment=demo`` with a topology update every 10 steps, evaluations and asynchronous checkpoints
every 50, looks at the process every half second from outside, and stops it by SIGTERM. The first fifth of the time is
left out: buffers reach their size in it. The rest is cut in four, and the last quarter is held against the first: by
medians, and by the most memory that was seen, in which chance has a part.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from smet_train.bench.result import measured_on
from smet_train.tracking.jsonl import read_events

SETTINGS = [
    "+experiment=demo",
    "train.steps=1000000",
    "topology.interval=10",
    "train.eval_interval=50",
    "checkpoint.interval=50",
    "checkpoint.asynchronous=true",
    # a small model: many updates in the time, and little memory for a leak to hide in
    "model.hidden_size=128",
    "model.intermediate_size=344",
    "data.sequence_tokens=128",
]
LARGEST_GROWTH = 1.01
_PERIOD_S = 0.5
_QUARTERS = 4


def watch(command: list[str], minutes: float) -> list[tuple[float, int, int]]:
    """(seconds since the start, resident bytes, open files) of ``command`` until it is stopped.

    Raises:
        SystemExit: if it ends before, or does not end well.
    """
    started_s = time.monotonic()
    seen: list[tuple[float, int, int]] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while (now_s := time.monotonic() - started_s) < 60 * minutes:
            if process.poll() is not None:
                raise SystemExit(f"the run ended after {now_s:.0f} s with status {process.returncode}")
            with suppress(psutil.Error), watched.oneshot():  # the next look finds out that it has ended
                seen.append((now_s, watched.memory_info().rss, watched.num_fds()))
            time.sleep(_PERIOD_S)
        process.send_signal(signal.SIGTERM)
    if process.returncode != 0:
        raise SystemExit(f"the run answered SIGTERM with status {process.returncode}")
    return seen


def by_quarter(seen: list[tuple[float, int, int]]) -> list[dict[str, int]]:
    """Resident bytes, their median and most, and the median of open files, in each quarter after the first fifth."""
    settled = seen[len(seen) // 5 :]
    edges = [number * len(settled) // _QUARTERS for number in range(_QUARTERS + 1)]
    quarters = []
    for first, last in pairwise(edges):
        _, held, files = zip(*settled[first:last], strict=True)
        quarters.append(
            {
                "resident_bytes": statistics.median_high(held),
                "most_resident_bytes": max(held),
                "open_files": statistics.median_high(files),
            }
        )
    return quarters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [*SETTINGS, *chosen.overrides]
        seen = watch([sys.executable, "-m", "smet_train", *settings, f"hydra.run.dir={run}"], chosen.minutes)
        events = list(read_events(run / "metrics.jsonl"))
    quarters = by_quarter(seen)
    growth = {what: quarters[-1][what] / quarters[0][what] for what in quarters[0]}
    counts = {
        kind: sum(event["event"] == kind for event in events) for kind in ("train", "eval", "topology", "checkpoint")
    }
    for number, quarter in enumerate(quarters, 1):
        print(
            f"quarter {number}: {quarter['resident_bytes'] / 2**20:.1f} MiB resident, at most "
            f"{quarter['most_resident_bytes'] / 2**20:.1f}; {quarter['open_files']} open files"
        )
    print(f"{counts}; last quarter over first: " + ", ".join(f"{what} {ratio:.4f}" for what, ratio in growth.items()))
    bars: list[dict[str, Any]] = [
        {
            "name": f"{what}, last quarter over first",
            "value": ratio,
            "bar": LARGEST_GROWTH,
            "holds": ratio <= LARGEST_GROWTH,
        }
        for what, ratio in growth.items()
    ]
    if chosen.out is not None:
        command = " ".join(["python benchmarks/soak.py", f"--minutes {chosen.minutes:g}", *chosen.overrides])
        every = max(1, len(seen) // 100)
        result = {
            "benchmark": "soak", **measured_on(), "command": command, "settings": settings, "bars": bars,
            "quarters": quarters, "counts": counts,
            "resident_mib": [[round(at_s), round(held / 2**20, 1)] for at_s, held, _ in seen[::every]],
        }  # fmt: skip
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
