"""Install the lowest version of every library that pyproject.toml allows, and train and test with them.

    python scripts/lowest_versions.py /tmp/lowest
    python scripts/lowest_versions.py /tmp/lowest --keep torch==2.13.0 --tests tests/data tests/optim

Makes an environment in the folder, pins each dependency to the bound after its ``>=`` (so that a bound which another
library excludes is an error of pip, with the names), trains 20 steps of the demo, goes on with it, exports it for
transformers, reports it and runs the tests. Exit status: that of the first of these that fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Those that hold the libraries to what the rest needs of them, quick enough to run on each change of a bound.
TESTS = ["tests/data", "tests/export", "tests/report", "tests/tracking", "tests/config/test_compose.py"]
_BOUND = re.compile(r"(?P<name>[\w.-]+)(?P<extra>\[[^]]*])?>=(?P<version>[\w.]+)")
_TEST_ONLY = ("pytest", "hypothesis")  # newest ones: they are no users'


def lowest(requirements: list[str], keep: list[str]) -> list[str]:
    """``name==bound`` of each of ``requirements``, ``keep`` in the place of those of its names.

    Raises:
        ValueError: if a requirement has no lower bound.
    """
    kept = {re.split(r"[=<>]", word)[0]: word for word in keep}
    pinned = []
    for text in requirements:
        found = _BOUND.match(text)
        if found is None:
            raise ValueError(f"{text} in pyproject.toml has no lower bound; write {text}>=...")
        pinned.append(kept.get(found["name"], f"{found['name']}{found['extra'] or ''}=={found['version']}"))
    return pinned


def requirements() -> tuple[list[str], list[str]]:
    """The dependencies of the package and of its trackers, and those of the tests that the tests here need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tests = [text for text in extras["test"] if text.startswith(_TEST_ONLY)]
    return [*project["dependencies"], *extras["tensorboard"]], tests


def main() -> int:
    """Do what the head of this file says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the environment and the run, new or made by this script")
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME==VERSION", help="versions that are not lowered")
    parser.add_argument("--tests", nargs="*", default=TESTS, metavar="PATH", help="tests to run; none = only train")
    given = parser.parse_args()
    package, tests = requirements()
    pinned = lowest(package, given.keep)
    python = given.folder / "env" / "bin" / "python"
    if not python.exists():
        venv.create(given.folder / "env", with_pip=True)
    print("\n".join(pinned), flush=True)
    run = given.folder / "run"
    command = [str(python), "-m", "smet_train"]
    settings = ["+experiment=demo", "train.eval_interval=10", "checkpoint.interval=10", f"hydra.run.dir={run}"]
    steps = [
        [str(python), "-m", "pip", "install", "--quiet", *pinned, *tests],
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT)],
        [str(python), "-m", "pip", "check"],
        [*command, *settings, "train.steps=20", "topology.interval=5"],
        [*command, "resume", str(run), "train.steps=24"],
        [str(python.with_name("smet-export")), str(run), "--format", "hf", "--out", str(given.folder / "exported")],
        [str(python.with_name("smet-report")), str(run)],
    ]
    if given.tests:
        chosen = [*given.tests, "-m", "not slow and not process"]
        steps.append([str(python), "-m", "pytest", "-q", "-p", "no:xdist", *chosen])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for step in steps:
        print("+", *step, flush=True)
        status = subprocess.run(step, cwd=ROOT, env=environment, check=False).returncode
        if status != 0:
            print(f"failed with status {status}: {' '.join(step)}", file=sys.stderr)
            return status
    print("all of it works with the lowest versions", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
