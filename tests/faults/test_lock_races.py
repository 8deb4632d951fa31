"""Two processes in one run folder: one trains, the other says who does; the dead block nobody."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from smet_train.errors import CheckpointError
from smet_train.train.lock import run_folder_lock
from tests import forked
from tests.faults.conftest import CampaignMaker

pytestmark = pytest.mark.slow

NAME = "two processes in one run folder"
FORK = multiprocessing.get_context("fork")
PROCESS = [sys.executable, "-m", "smet_train"]


def contend(folder: Path, start: Barrier, pause_s: float, answer: Any) -> None:
    """Try to hold the folder's lock; say "held" and stay until told to end, or say why not."""
    start.wait()
    time.sleep(pause_s)
    try:
        with run_folder_lock(folder):
            answer.send("held")
            answer.recv()
    except CheckpointError as error:
        answer.send(str(error))


@pytest.mark.parametrize("dead_before", [False, True])
def test_one_of_two_holds_the_folder(campaign: CampaignMaker, tmp_path: Path, dead_before: bool) -> None:
    with campaign(NAME, unit="s", part=f"dead before: {dead_before}") as tally:
        for number, draw in enumerate(tally.draws(few=3, every=50)):
            folder = tmp_path / str(number)
            if dead_before:
                leave_dead_holder(folder)
            started_s = time.perf_counter()
            tally.note(race(folder, pause_s=draw.choice([0, 0, 1e-4, 1e-3])), time.perf_counter() - started_s)


def leave_dead_holder(folder: Path) -> None:
    """A lock file with the id of a process that was killed while it held the lock."""
    here, there = FORK.Pipe()
    holder = FORK.Process(target=contend, args=(folder, FORK.Barrier(1), 0, there))
    holder.start()
    assert here.recv() == "held"
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (folder / ".lock").read_text().startswith(str(holder.pid))


def race(folder: Path, pause_s: float) -> str | None:
    """Start two at once; what went wrong, None if nothing did."""
    start, pipes = FORK.Barrier(2), [FORK.Pipe() for _ in range(2)]
    racers = [
        FORK.Process(target=contend, args=(folder, start, pause_s * number, there))
        for number, (_, there) in enumerate(pipes)
    ]
    for racer in racers:
        racer.start()
    answers = [here.recv() if here.poll(30) else "nothing" for here, _ in pipes]
    for (here, _), answer in zip(pipes, answers, strict=True):
        if answer == "held":
            here.send("end")
    for racer in racers:
        racer.join()
    if sorted(answer == "held" for answer in answers) != [False, True]:
        return f"{answers}"
    winner = racers[answers.index("held")]
    (refused,) = (answer for answer in answers if answer != "held")
    told = f"another process (pid {winner.pid}) is training in {folder}; "
    return None if refused.startswith(told) and "\n" not in refused else f"{winner.pid} holds it, but: {refused}"


def test_two_commands_in_one_folder(campaign: CampaignMaker, tmp_path: Path, quick: list[str]) -> None:
    with campaign(NAME, unit="s", part="commands") as tally:
        for number, draw in enumerate(tally.draws(few=1, every=5)):
            folder = tmp_path / str(number)
            started_s = time.perf_counter()
            tally.note(command_race(folder, quick, draw.random()), time.perf_counter() - started_s)


def command_race(folder: Path, quick: list[str], pause_s: float) -> str | None:
    command = [*PROCESS, *quick, "train.steps=100000", "train.eval_interval=0", f"hydra.run.dir={folder}"]
    racers = []
    for _ in range(2):
        racers.append(forked.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        time.sleep(pause_s)
    try:
        deadline_s = time.monotonic() + 100
        while all(racer.poll() is None for racer in racers) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        ended = [racer for racer in racers if racer.poll() is not None]
        if len(ended) != 1:
            return f"{len(ended)} have ended"
        holder = next(racer for racer in racers if racer is not ended[0])
        told = ended[0].communicate()[1]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    expected = rf"smet-train: another process \(pid {holder.pid}\) is training in {re.escape(str(folder))}; .*\n"
    return None if ended[0].returncode == 2 and re.fullmatch(expected, told) else f"{holder.pid}: {told!r}"


def hold_with_child(folder: Path, answer: Any) -> None:
    """Hold the lock beside a forked child that lives on; sends the child's id."""
    with run_folder_lock(folder):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        answer.send(child)
        time.sleep(60)


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    here, there = FORK.Pipe()
    holder = FORK.Process(target=hold_with_child, args=(tmp_path, there))
    holder.start()
    child = here.recv()
    try:
        with pytest.raises(CheckpointError, match=rf"pid {holder.pid}\)"), run_folder_lock(tmp_path):
            pass
        holder.kill()
        holder.join()
        os.kill(child, 0)  # it is alive
        with run_folder_lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
