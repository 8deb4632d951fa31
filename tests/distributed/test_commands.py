"""The commands that start several processes, as they are typed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from smet_train.tracking.jsonl import read_events
from smet_train.train.lock import LOCK_NAME
from tests import forked
from tests.distributed.ranks import free_port, told_of_itself
from tests.faults.trials import digest

pytestmark = pytest.mark.slow

Typed = Callable[..., "subprocess.Popen[str]"]
SMET_TRAIN = [sys.executable, "-m", "smet_train"]
LONG = ("train.steps=60", "train.micro_batch_size=1", "topology.interval=7", "train.eval_interval=0")


def torchrun(*flags: str) -> list[str]:
    where = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", where]
    return [*run, *flags, "-m", "smet_train"]


@pytest.fixture
def typed(quick: list[str], tmp_path: Path) -> Iterator[Typed]:
    """Start a command with the settings of ``quick`` in the folder ``name``; what still runs is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(
        command: list[str], *words: str, name: str = "run", variables: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        start_process = forked.Popen if command == SMET_TRAIN else subprocess.Popen
        process = start_process(
            [*command, *quick, *words, f"hydra.run.dir={tmp_path / name}"], env={**os.environ, **(variables or {})},
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


def wait_until(found: Callable[[], bool], longest_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + longest_s
    while not found():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def wait_for_step(folder: Path, step: int) -> None:
    path = folder / "metrics.jsonl"
    wait_until(lambda: path.is_file() and any(event.get("step", 0) >= step for event in read_events(path)))


def ranks_of(process: "subprocess.Popen[str]", folder: Path) -> list[psutil.Process]:
    """The two processes of the run in ``folder``, which ``process`` has started, by their rank: the first holds the
    lock."""
    leader = int((folder / LOCK_NAME).read_text().split()[0])
    found = psutil.Process(process.pid).children()
    assert len(found) == 2
    return sorted(found, key=lambda one: one.pid != leader)


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def trained_by_two_then_by_one(typed: Typed, run: Path) -> None:
    """To step 3 by processes of a setting, to step 4 by one."""
    process = typed(SMET_TRAIN, "train.processes=2", "train.steps=3")
    output = said(process)
    assert process.returncode == 0, output
    assert "fp32 on cpu, 2 processes" in output
    assert output.count("run folder") == 2  # as of one process: at the start and at the end
    done = forked.run(
        [*SMET_TRAIN, "resume", str(run), "train.processes=1", "train.steps=4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "changed     train.processes=1 (was 2)" in done.stdout


def steps_trained(run: Path) -> list[int]:
    return [event["step"] for event in read_events(run / "metrics.jsonl") if event["event"] == "train"]


@pytest.mark.process
@pytest.mark.timeout(900)
def test_processes_of_a_setting_then_one_then_torchrun(typed: Typed, tmp_path: Path) -> None:
    trained_by_two_then_by_one(typed, tmp_path / "run")
    process = typed(torchrun(), "train.steps=6")
    output = said(process)
    assert process.returncode == 0, output
    assert steps_trained(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_processes_of_a_setting_then_one_then_what_torchrun_tells_two(typed: Typed, tmp_path: Path) -> None:
    trained_by_two_then_by_one(typed, tmp_path / "run")
    processes = as_of_torchrun(typed, "train.steps=6")
    outputs = [said(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert steps_trained(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def as_of_torchrun(typed: Typed, *words: str) -> list["subprocess.Popen[str]"]:
    """The two processes that torchrun would start, told what it tells them of themselves."""
    port = free_port()
    return [typed(SMET_TRAIN, *words, variables=told_of_itself(rank, 2, port)) for rank in range(2)]


@pytest.mark.process
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("settings", "killed_ones"),
    [(["train.parallel=ddp"], (0, 1)), (["train.parallel=fsdp", "train.deterministic=true"], (1,))],
    ids=["ddp", "fsdp"],
)
def test_torchrun_restarts_a_killed_run_which_ends_bit_for_bit_as_one_that_was_not(
    typed: Typed, tmp_path: Path, settings: list[str], killed_ones: tuple[int, ...]
) -> None:
    whole = typed(torchrun(), *LONG, *settings, name="whole")
    assert whole.wait(400) == 0, said(whole)
    for killed in killed_ones:
        run = tmp_path / f"killed_{killed}"
        process = typed(torchrun("--max-restarts=3"), *LONG, *settings, name=run.name)
        wait_for_step(run, 10)
        ranks_of(process, run)[killed].kill()
        output = said(process)
        assert process.returncode == 0, output
        assert len((run / "resumes.jsonl").read_text().splitlines()) == 1, output
        assert digest(run, 60) == digest(tmp_path / "whole", 60)


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGTERM, True), (signal.SIGINT, False)], ids=["SIGTERM to all", "SIGINT"]
)
def test_a_signal_to_smet_train_saves_and_ends_all(
    typed: Typed, tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """Which may be sent to its processes too, as systemd does, so that each gets it twice."""
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, *LONG, "train.processes=2", "train.steps=100000", "checkpoint.interval=0")
    wait_for_step(run, 10)
    started = ranks_of(process, run)
    for one in started if to_all else ():
        one.send_signal(number)
    process.send_signal(number)
    output = said(process)
    assert process.returncode == 0, output
    assert not alive(started)
    ended = read_events(run / "metrics.jsonl")[-1]
    assert (ended["event"], ended["reason"]) == ("end", number.name)
    assert (run / "checkpoints" / f"step_{ended['step']:08d}").is_dir()


def test_processes_end_with_the_one_that_started_them(typed: Typed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, *LONG, "train.processes=2", "train.steps=100000")
    wait_for_step(run, 10)
    started = ranks_of(process, run)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(started))
    assert read_events(run / "metrics.jsonl")[-1]["reason"] == "SIGTERM"


def test_a_killed_process_ends_the_others_and_is_told(typed: Typed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = typed(SMET_TRAIN, *LONG, "train.processes=2", "train.steps=100000")
    wait_for_step(run, 10)
    ranks_of(process, run)[1].kill()
    output = said(process)
    assert process.returncode == 128 + signal.SIGKILL
    assert "smet-train: process 1 of 2 was killed by SIGKILL" in output
    assert "another process of this run has ended" in output


TOLD_ONCE = "sparsity.density=2.0 is out of range"


@pytest.mark.process
def test_a_mistake_is_told_once(typed: Typed) -> None:
    process = typed(torchrun(), "sparsity.density=2")
    output = said(process)
    assert process.returncode != 0
    assert output.count(TOLD_ONCE) == 1


def test_a_mistake_is_told_by_each_process_where_none_ends_the_others(typed: Typed) -> None:
    """It may be a mistake of one of them alone, of which the first process knows nothing."""
    processes = as_of_torchrun(typed, "sparsity.density=2")
    outputs = [said(process) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert [output.count(TOLD_ONCE) for output in outputs] == [1, 1]
    assert outputs[1].startswith("smet-train: [process 1 of 2] ")


NO_SWEEP = ("torchrun starts the processes of one run", "write smet-train -m ... train.processes=2")


@pytest.mark.process
def test_torchrun_starts_no_sweep(typed: Typed) -> None:
    output = said(typed(torchrun(), "-m", "seed=1,2"))
    assert all(text in output for text in NO_SWEEP)


def test_a_sweep_is_refused_by_what_torchrun_starts(typed: Typed) -> None:
    processes = as_of_torchrun(typed, "-m", "seed=1,2")
    outputs = [said(process) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert all(text in outputs[0] for text in NO_SWEEP)
