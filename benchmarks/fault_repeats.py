"""Does a test of `make faults` ever fail without a cause? The whole suite, again and again.

    python benchmarks/fault_repeats.py REPEATS [--out FILE]

Each repeat is a line of FILE as soon as it is over: its commit, date, seconds, trials tried and passed. A FILE that is
there already gains lines, so that repeats may be spread over days. Run it on a tree without changes.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from smet_train.bench.result import measured_on

_TABLE = Path("outputs/faults.json")  # of `make faults`


def repeat() -> dict[str, Any]:
    """One run of the suite."""
    _TABLE.unlink(missing_ok=True)
    started_s = time.perf_counter()
    run = subprocess.run(["make", "faults"], stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started_s
    campaigns = json.loads(_TABLE.read_text(encoding="utf-8"))["campaigns"] if _TABLE.exists() else []
    lines = run.stdout.splitlines()
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        **measured_on(),
        "seconds": round(seconds),
        "tests": next((line.strip("= ") for line in reversed(lines) if line.startswith("=")), ""),
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "why": [line.removeprefix("E").strip() for line in lines if line.startswith("E  ") and 'File "' not in line],
        "tried": sum(row["tried"] for row in campaigns),
        "passed": sum(row["passed"] for row in campaigns),
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repeats", type=int)
    parser.add_argument("--out", type=Path, default=Path("outputs/fault_repeats.json"))
    chosen = parser.parse_args()
    if _git("status", "--porcelain"):
        parser.error("the tree has changes of its own; commit them first, so that the repeat's commit says what ran")
    rows = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else []
    for _ in range(chosen.repeats):
        rows.append(repeat())
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(f"{len(rows)}: {rows[-1]['tests']}, {rows[-1]['passed']} of {rows[-1]['tried']} trials", flush=True)


if __name__ == "__main__":
    main()
