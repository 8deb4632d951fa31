"""The commands that start several processes, as they are typed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smet_train.tracking.jsonl import read_events
from tests.distributed.ranks import free_port
from tests.faults.trials import digest

SMET_TRAIN = [sys.executable, "-m", "smet_train"]
LONG = ("train.steps=60", "train.micro_batch_size=1", "topology.interval=7", "train.eval_interval=0")


def torchrun(*flags: str) -> list[str]:
    where = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", where]
    return [*run, *flags, "-m", "smet_train"]


@pytest.fixture
def typed(quick: list[str], tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a command with the settings of ``quick`` in the folder ``name``; what still runs is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], *words: str, name: str = "run") -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*command, *quick, *words, f"hydra.run.dir={tmp_path / name}"],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def said(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=400)
    return output


def wait_for_step(folder: Path, step: int) -> None:
    deadline_s = time.monotonic() + 90
    while time.monotonic() < deadline_s:
        path = folder / "metrics.jsonl"
        if path.is_file() and any(event.get("step", 0) >= step for event in read_events(path)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} has not come to step {step}")


def ranks_of(folder: Path) -> dict[int, int]:
    """Process ids of the run in ``folder`` by their rank."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            told = (process / "environ").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        rank = [value.removeprefix("RANK=") for value in told if value.startswith("RANK=")]
        if rank and any(str(folder) in word for word in words):
            found[int(rank[0])] = int(process.name)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_of_a_setting_then_one_then_torchrun(
    typed: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, "train.processes=2", "train.steps=3")
    output = said(process)
    assert process.returncode == 0, output
    assert "fp32 on cpu, 2 processes" in output
    assert output.count("run folder") == 2  # as of one process: at the start and at the end
    done = subprocess.run(
        [*SMET_TRAIN, "resume", str(run), "train.processes=1", "train.steps=4"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "changed     train.processes=1 (was 2)" in done.stdout
    process = typed(torchrun(), "train.steps=6")
    output = said(process)
    assert process.returncode == 0, output
    steps = [event["step"] for event in read_events(run / "metrics.jsonl") if event["event"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("settings", "killed_ones"),
    [(["train.parallel=ddp"], (0, 1)), (["train.parallel=fsdp", "train.deterministic=true"], (1,))],
    ids=["ddp", "fsdp"],
)
def test_torchrun_restarts_a_killed_run_which_ends_bit_for_bit_as_one_that_was_not(
    typed: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, settings: list[str], killed_ones: tuple[int, ...]
) -> None:
    whole = typed(torchrun(), *LONG, *settings, name="whole")
    assert whole.wait(400) == 0, said(whole)
    for killed in killed_ones:
        run = tmp_path / f"killed_{killed}"
        process = typed(torchrun("--max-restarts=3"), *LONG, *settings, name=run.name)
        wait_for_step(run, 10)
        os.kill(ranks_of(run)[killed], signal.SIGKILL)
        output = said(process)
        assert process.returncode == 0, output
        assert len((run / "resumes.jsonl").read_text().splitlines()) == 1, output
        assert digest(run, 60) == digest(tmp_path / "whole", 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGTERM, True), (signal.SIGINT, False)], ids=["SIGTERM to all", "SIGINT"]
)
def test_a_signal_to_smet_train_saves_and_ends_all(
    typed: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """Which may be sent to its processes too, as systemd does, so that each gets it twice."""
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, *LONG, "train.processes=2", "train.steps=100000", "checkpoint.interval=0")
    wait_for_step(run, 10)
    for rank in ranks_of(run).values() if to_all else ():
        os.kill(rank, number)
    process.send_signal(number)
    output = said(process)
    assert process.returncode == 0, output
    assert ranks_of(run) == {}
    ended = read_events(run / "metrics.jsonl")[-1]
    assert (ended["event"], ended["reason"]) == ("end", number.name)
    assert (run / "checkpoints" / f"step_{ended['step']:08d}").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_end_with_the_one_that_started_them(
    typed: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, *LONG, "train.processes=2", "train.steps=100000")
    wait_for_step(run, 10)
    process.kill()
    process.wait()
    deadline_s = time.monotonic() + 60
    while ranks_of(run) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert ranks_of(run) == {}
    assert read_events(run / "metrics.jsonl")[-1]["reason"] == "SIGTERM"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_process_ends_the_others_and_is_told(
    typed: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, *LONG, "train.processes=2", "train.steps=100000")
    wait_for_step(run, 10)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    output = said(process)
    assert process.returncode == 128 + signal.SIGKILL
    assert "smet-train: process 1 of 2 was killed by SIGKILL" in output
    assert "another process of this run has ended" in output


def test_a_mistake_is_told_once(typed: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = typed(torchrun(), "sparsity.density=2")
    output = said(process)
    assert process.returncode != 0
    assert output.count("sparsity.density=2.0 is out of range") == 1


def test_torchrun_starts_no_sweep(typed: Callable[..., "subprocess.Popen[str]"]) -> None:
    output = said(typed(torchrun(), "-m", "seed=1,2"))
    assert "torchrun starts the processes of one run" in output
    assert "write smet-train -m ... train.processes=2" in output
