"""Sweeps through submitit, on this machine and on a make-believe SLURM, and the scripts for a real one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from smet_train.tracking.jsonl import read_events
from tests.documents import ROOT

pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[str]"]
Table = Callable[[], dict[str, dict[str, str]]]
# What SLURM runs is started by the shell.
CLUSTERS = pytest.mark.parametrize("cluster", ["local", pytest.param("slurm", marks=pytest.mark.process)])


@pytest.fixture
def long_run(quick: list[str]) -> list[str]:
    """Minutes, saved by signals alone."""
    return [*quick, "train.steps=4000", "checkpoint.interval=0", "topology.interval=1000", "train.eval_interval=0"]


def wait_for(found: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    deadline_s = time.monotonic() + 150
    while not found():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def steps_done(root: Path, name: str = "*") -> int:
    """Of the only run below ``root``, or of the job ``name`` of a sweep there."""
    found = [*root.glob(f"*/{name}/metrics.jsonl"), *root.glob("*/metrics.jsonl")]
    return max((e["step"] for path in found for e in read_events(path) if e["event"] == "train"), default=0)


def local_job(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """What is there of the job that submitit runs on this machine, below a process that watches it, and of the run
    below the job."""
    jobs = [job for watching in psutil.Process(process.pid).children() for job in watching.children()]
    return [*jobs, *(run for job in jobs for run in job.children())]


@CLUSTERS
def test_each_job_trains_in_its_own_folder_and_a_finished_one_is_not_repeated(
    cluster: str, smet_train: Start, table: Table, quick: list[str]
) -> None:
    command = ["-m", *quick, "sparsity.density=0.1,1.5", f"hydra/launcher=submitit_{cluster}"]
    process = smet_train(*command)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    assert "smet-train: 1 of 2 runs failed" in output
    rows = table()
    assert [row["status"] for row in rows.values()] == ["done", "failed"]
    assert "sparsity.density=1.5 is out of range" in rows["sparsity.density=1.5"]["error"]
    done = Path(rows["sparsity.density=0.1"]["folder"])
    assert done.name == "sparsity.density=0.1"
    assert (done / ".lock").is_file()
    assert rows["sparsity.density=0.1"]["eval_loss"]
    written = (done / "metrics.jsonl").stat().st_mtime_ns

    process = smet_train(*command)
    process.communicate(timeout=200)
    assert (done / "metrics.jsonl").stat().st_mtime_ns == written
    assert "finished at step 6" in (done / "console.log").read_text()


@CLUSTERS
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_job_whose_time_is_over_saves_and_is_submitted_anew(
    cluster: str, number: signal.Signals, smet_train: Start, table: Table, long_run: list[str], tmp_path: Path
) -> None:
    process = smet_train("-m", *long_run, "sparsity.density=choice(0.1)", f"hydra/launcher=submitit_{cluster}")
    root = tmp_path / "multirun"
    wait_for(lambda: steps_done(root) > 5, process)
    if cluster == "local":
        job, _ = local_job(process)
        pid = job.pid
    else:
        pid = int((tmp_path / "cluster" / "100.pid").read_text())
    os.kill(pid, number)
    (log,) = root.glob("*/*/console.log")
    wait_for(lambda: "resumed     at step" in log.read_text(), process)
    assert "SIGUSR1: stopped at step" in log.read_text()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    assert [row["status"] for row in table().values()] == ["stopped"]


@CLUSTERS
def test_a_stopped_sweep_has_its_jobs_save_and_starts_no_further_one(
    cluster: str, smet_train: Start, table: Table, long_run: list[str], tmp_path: Path
) -> None:
    process = smet_train("-m", *long_run, "seed=1,2", f"hydra/launcher=submitit_{cluster}")
    root = tmp_path / "multirun"
    wait_for(lambda: steps_done(root, "seed=1") > 5, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert [row["status"] for row in table().values()] == ["stopped", "stopped"]
    assert list(root.glob("*/seed=1/checkpoints/step_*"))
    if cluster == "slurm":
        assert (tmp_path / "cluster" / "log").read_text().splitlines() == [
            "scancel --state=PENDING 100_0 100_1",
            "scancel --signal=INT 100_0 100_1",
        ]


def test_a_job_that_is_killed_is_listed_and_the_others_go_on(smet_train: Start, table: Table, quick: list[str]) -> None:
    process = smet_train("-m", *quick, "seed=1,2", "hydra/launcher=submitit_local")
    wait_for(lambda: len(local_job(process)) == 2, process)
    for doomed in reversed(local_job(process)):
        doomed.kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    rows = table()
    assert [row["status"] for row in rows.values()] == ["failed", "done"]
    assert "has not produced any output" in rows["seed=1"]["error"]


def test_the_settings_of_the_cluster_are_sbatchs(
    smet_train: Start, quick: list[str], tmp_path: Path, table: Table
) -> None:
    fails = '#!/bin/bash\necho $$ >"$CLUSTER/$SLURM_JOB_ID.pid"\nexit 1\n'
    (tmp_path / "bin" / "srun").write_text(fails)  # as what it would start does
    settings = ["partition=gpu", "timeout_min=90", "requeue=false", "setup_commands=[echo ready]", "mem_gb=4"]
    words = [f"hydra.launcher.{setting}" for setting in settings]
    words += ["+hydra.launcher.additional_parameters={mail-type: END}"]
    process = smet_train("-m", *quick, "train.steps=0.5,x", "+cluster=slurm")
    assert "is not a whole number" in process.communicate(timeout=100)[0]
    process = smet_train("-m", *quick, "+cluster=slurm", "sparsity.density=1.5,1.6", *words)
    process.communicate(timeout=100)
    text = (tmp_path / "cluster" / "100.sbatch").read_text()
    for option in ("partition=gpu", "time=90", "no-requeue", "mem=4GB", "gpus-per-node=1", "cpus-per-task=8"):
        assert f"#SBATCH --{option}\n" in text
    assert "#SBATCH --mail-type=END\n" in text
    assert "#SBATCH --signal=USR2@120\n" in text
    assert "\necho ready\n" in text
    assert " --cpus-per-task=8 " in text
    assert [row["status"] for row in table().values()] == ["failed", "failed"]


@pytest.mark.process
def test_the_script_of_a_run_saves_requeues_and_goes_on_until_it_is_finished(
    long_run: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    script = ROOT / "scripts" / "slurm_run.sh"
    job = {**environment, "SLURM_JOB_ID": "7"}

    def start(*overrides: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["bash", str(script), *long_run, *overrides], cwd=tmp_path, env=job)

    process = start()
    root = tmp_path / "outputs"
    wait_for(lambda: steps_done(root) > 5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=100) == 0
    (saved,) = root.glob("*/checkpoints/step_*")
    log = tmp_path / "cluster" / "log"
    assert log.read_text() == "scontrol requeue 7\n"

    last = int(saved.name.removeprefix("step_")) + 2
    assert start(f"train.steps={last}").wait(timeout=100) == 0
    assert steps_done(root) == last
    assert log.read_text() == "scontrol requeue 7\n"
    assert start("sparsity.density=1.5").wait(timeout=100) == 2


def test_the_script_of_a_run_passes_on_a_signal_and_the_exit_status(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    stands_for_it = (
        '#!/bin/bash\ntrap "exit 0" USR1\n[ "$1" = wrong ] && exit 2\ntouch begun\nwhile :; do sleep 0.05; done\n'
    )
    (tmp_path / "bin" / "smet-train").write_text(stands_for_it)
    command, job = ["bash", str(ROOT / "scripts" / "slurm_run.sh")], {**environment, "SLURM_JOB_ID": "7"}
    with subprocess.Popen(command, cwd=tmp_path, env=job) as process:
        wait_for((tmp_path / "begun").exists)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=100) == 0
    log = tmp_path / "cluster" / "log"
    assert log.read_text() == "scontrol requeue 7\n"
    assert subprocess.run([*command, "wrong"], cwd=tmp_path, env=job, check=False).returncode == 2
    assert log.read_text() == "scontrol requeue 7\n"


@pytest.mark.parametrize(("typed", "folder"), [([], "outputs/slurm-7"), (["hydra.run.dir=mine"], "mine")])
def test_the_script_of_a_fresh_run_goes_on_with_it(
    typed: list[str], folder: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "bin" / "smet-train").write_text('#!/bin/bash\nprintf "%s\n" "$@"\n')

    def words(*overrides: str, restarts: str = "0") -> list[str]:
        job = {**environment, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
        command = ["bash", str(ROOT / "scripts" / "slurm_run.sh"), *overrides, *typed]
        return subprocess.run(command, env=job, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()

    fresh = ["seed=1", "checkpoint.resume=never"]
    assert words(*fresh) == [*fresh, f"hydra.run.dir={folder}"]
    assert words(*fresh, restarts="2") == [*fresh, f"hydra.run.dir={folder}", "checkpoint.resume=auto"]
    assert words("seed=1", restarts="2") == ["seed=1", *typed]


@pytest.mark.process
def test_the_script_of_a_sweep_submits_its_jobs(
    quick: list[str], tmp_path: Path, environment: dict[str, str], table: Table
) -> None:
    script = ROOT / "scripts" / "slurm_sweep.sh"
    job = {**environment, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(["bash", str(script), *quick, "seed=1,2"], cwd=tmp_path, env=job, timeout=200, check=False)
    assert done.returncode == 0
    assert [row["status"] for row in table().values()] == ["done", "done"]
    assert (tmp_path / "cluster" / "100.sbatch").is_file()


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
