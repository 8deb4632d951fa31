"""Runs whose terminal or pipe ends before they do."""

import csv
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from smet_train.tracking.jsonl import read_events
from tests.cli.conftest import COMMAND
from tests.programs import BOTH

# The first terminal that a new session opens is its own.
ON_ITS_TERMINAL = """
import os
os.close(os.open(os.ttyname(0), os.O_RDWR))
from smet_train.cli.train import main
main()
"""
ENDLESS = ["train.steps=100000", "checkpoint.interval=0", "train.log_interval=1"]


def wait_for_steps(process: "subprocess.Popen[Any]", folder: Path, steps: int, terminal: int | None = None) -> None:
    """Until the run has done so many; what it writes to ``terminal`` is read."""
    deadline_s = time.monotonic() + 200
    metrics = folder / "metrics.jsonl"
    while not metrics.is_file() or sum(event["event"] == "train" for event in read_events(metrics)) < steps:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
        if terminal is not None:
            with suppress(BlockingIOError):
                os.read(terminal, 1 << 16)


def saved_for(reason: str, folder: Path) -> bool:
    """Whether the run in ``folder`` ended by ``reason``, its last step saved."""
    events = read_events(folder / "metrics.jsonl")
    last_step = max(event["step"] for event in events if event["event"] == "train")
    end = events[-1]
    assert (end["event"], end["step"]) == ("end", last_step)
    return end["reason"] == reason and (folder / "checkpoints" / f"step_{last_step:08d}").is_dir()


@BOTH
def test_ctrl_c_that_ends_the_reader_of_a_pipe_first(
    programs: ModuleType, quick: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    """As in ``smet-train … | tee log``: Ctrl-C reaches both."""
    folder = tmp_path / "run"
    process = programs.Popen(
        [*COMMAND, *quick, *ENDLESS, f"hydra.run.dir={folder}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    wait_for_steps(process, folder, 5)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stderr.read() == "\nSIGINT: finishing this step, then saving. Send it again to stop at once.\n"
    assert saved_for("SIGINT", folder)
    assert "<stdout> can't be written any more (Broken pipe)" in (folder / "train.log").read_text()


def test_a_log_that_can_not_be_written_costs_its_lines_alone(
    programs: ModuleType, quick: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "run"
    code = (
        "import logging; open_own = logging.FileHandler._open\n"
        "def full(handler):\n    open_own(handler).close()\n    return open('/dev/full', 'a')\n"
        "logging.FileHandler._open = full; from smet_train.cli.train import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        *quick,
        "train.precision=bf16",
        f"hydra.run.dir={folder}",
    ]  # may be slow here: a warning
    done = programs.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if not line.startswith("WARNING: ")]
    assert read_events(folder / "metrics.jsonl")[-1]["reason"] == "finished"


@BOTH
def test_a_terminal_that_is_closed(
    programs: ModuleType, quick: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    """It sends SIGHUP, and can't be written from then on."""
    folder = tmp_path / "run"
    master, terminal = pty.openpty()
    process = programs.Popen(
        [sys.executable, "-c", ON_ITS_TERMINAL, *quick, *ENDLESS, f"hydra.run.dir={folder}"],
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.set_blocking(master, False)
    wait_for_steps(process, folder, 5, master)
    os.close(master)
    assert process.wait(60) == 0
    assert saved_for("SIGHUP", folder)


@BOTH
@pytest.mark.slow
def test_a_sweep_whose_reader_has_seen_enough(
    programs: ModuleType, quick: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    """As in ``smet-train -m … | head -1``."""
    process = programs.Popen(
        [*COMMAND, "-m", *quick, "seed=1,2,3", "train.steps=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("sweep of 3 runs")
    process.stdout.close()
    assert process.wait(200) == 0
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 3
