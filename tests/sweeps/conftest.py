"""Sweeps typed as a person does, on a machine that has a small make-believe SLURM if a test wants one."""

import csv
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).resolve().parents[2]

# A job's script is run at once, an array's once for each of its numbers; what SLURM says of a job is in its state file.
_STUBS = {
    "sbatch": """\
#!/bin/bash
script="$1"; shift
id=$(( 100 + $(ls "$CLUSTER"/*.sbatch 2>/dev/null | wc -l) ))
cp "$script" "$CLUSTER/$id.sbatch"
array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
start() {
    for try in 1 2 3; do
        rm -f "$CLUSTER/$SLURM_JOB_ID.requeue"
        [ "$try" = 1 ] || export SLURM_RESTART_COUNT=$(( try - 1 ))
        bash "$script" "$@" >>"$CLUSTER/$SLURM_JOB_ID.out" 2>&1
        [ -e "$CLUSTER/$SLURM_JOB_ID.requeue" ] || break
    done
    echo FAILED >"$CLUSTER/$SLURM_JOB_ID.state"
}
if [ -n "$array" ]; then
    for number in $(seq 0 "$array"); do
        export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$number SLURM_JOB_ID="${id}_$number"
        start "$@" >/dev/null 2>&1 &
    done
else
    export SLURM_JOB_ID=$id
    start "$@" >/dev/null 2>&1 &
fi
echo "Submitted batch job $id"
""",
    "srun": """\
#!/bin/bash
out=/dev/stdout
while [ "${1#--}" != "$1" ]; do
    case "$1" in --output|--error) shift ;; esac
    shift
done
echo $$ >"$CLUSTER/$SLURM_JOB_ID.pid"
exec "$@"
""",
    "sacct": """\
#!/bin/bash
echo "JobID|State|NodeList"
for pid in "$CLUSTER"/*.pid; do
    id=$(basename "$pid" .pid)
    echo "$id|$(cat "$CLUSTER/$id.state" 2>/dev/null || echo RUNNING)|here"
done
""",
    "scancel": """\
#!/bin/bash
echo "scancel $*" >>"$CLUSTER/log"
[ "$1" = --signal=INT ] || exit 0
shift
for id in "$@"; do kill -INT "$(cat "$CLUSTER/$id.pid")"; done
""",
    "scontrol": """\
#!/bin/bash
echo "scontrol $*" >>"$CLUSTER/log"
touch "$CLUSTER/$2.requeue"
""",
}

# Smet-train whose launcher submitit_local starts forks: what watches a job, the job, and so the run.
_DRIVER = """
import runpy, types
from submitit.core import core
from submitit.local import local
from smet_train import offspring

def start(command, **more):
    return offspring.Popen([word for word in command if word != "-u"], **more)

core.Job._results_timeout_s = 1  # for a file system that shows files late
local.subprocess = types.SimpleNamespace(Popen=start)
runpy.run_module("smet_train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that has ``smet-train`` and, for what is in ``CLUSTER``, a SLURM."""
    programs, cluster = tmp_path / "bin", tmp_path / "cluster"
    programs.mkdir()
    cluster.mkdir()
    stubs = {**_STUBS, "smet-train": f'#!/bin/bash\nexec {sys.executable} -m smet_train "$@"\n'}
    for name, text in stubs.items():
        (programs / name).write_text(text)
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)
    path = f"{programs}:{os.environ['PATH']}"
    return {
        **os.environ, "PATH": path, "CLUSTER": str(cluster), "OMP_NUM_THREADS": "1", "COLUMNS": "200",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip


@pytest.fixture
def smet_train(tmp_path: Path, environment: dict[str, str]) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts the command in ``tmp_path`` and does not wait."""

    def start(*arguments: str) -> "subprocess.Popen[str]":
        return forked.Popen(
            [sys.executable, "-c", _DRIVER, *arguments],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


@pytest.fixture
def table(tmp_path: Path) -> Callable[[], dict[str, dict[str, str]]]:
    """The rows of the only sweep by name."""

    def read() -> dict[str, dict[str, str]]:
        (sweep,) = (tmp_path / "multirun").iterdir()
        with (sweep / "sweep.csv").open(newline="") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    return read
