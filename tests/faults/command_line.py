"""Calls the console scripts in this process, in an empty folder, and tells what came of it."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from smet_train.cli import bench, plan, train

MAINS: dict[str, Callable[[], None]] = {
    "smet-train": train.main,
    "smet-plan": plan.main,
    "smet-bench": bench.main,
}
ACCEPTED = "the command was accepted"


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, its standard error, the files that it left, and seconds."""

    status: int
    told: str
    left: list[str]
    wall_s: float


def accept(*_: object, **__: object) -> int:
    """Stands for training: a command that comes so far is taken for right."""
    raise SystemExit(ACCEPTED)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(words: list[str], folder: Path) -> Outcome:
    """``words``, a console script's name and its arguments, typed in ``folder``; a training run is not begun.

    The status is 0 for a command that would train, and 1 with its traceback for one that raises.
    """
    before = files_in(folder)
    told = io.StringIO()
    started_s = time.perf_counter()
    with (
        working_in(folder),
        mock.patch.object(sys, "argv", words),
        mock.patch.object(train, "_train", accept),
        mock.patch("smet_train.offspring.Popen", accept),  # the jobs of a sweep
        contextlib.redirect_stderr(told),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            MAINS[words[0]]()
            status = 0
        except SystemExit as end:
            status = 0 if end.code in (None, ACCEPTED) else int(str(end.code))
    wall_s = time.perf_counter() - started_s
    return Outcome(status, told.getvalue(), sorted(files_in(folder) - before), wall_s)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def failure(words: list[str], outcome: Outcome, expected: list[str]) -> str | None:
    """What is wrong with how a bad command was answered; None if nothing is. How long it took is told, and decides
    nothing: that depends on what else the machine does."""
    lines = outcome.told.strip().splitlines()
    problems = []
    if outcome.status != 2:
        problems.append(f"status {outcome.status}")
    if not 1 <= len(lines) <= 3:
        problems.append(f"{len(lines)} lines")
    if "Traceback" in outcome.told or not outcome.told.startswith(f"{words[0]}: "):
        problems.append("not a message")
    if outcome.left:
        problems.append(f"left {outcome.left}")
    problems += [f"does not say {text!r}" for text in expected if text not in outcome.told]
    return f"{words}: {', '.join(problems)}; it said: {outcome.told[-600:]!r}" if problems else None
