"""Runs in processes of their own, forked from one that has everything imported; what they leave, to compare."""

import faulthandler
import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console

from smet_train import job
from smet_train.config.schema import Config
from smet_train.errors import SmetError
from smet_train.tracking.jsonl import read_events
from smet_train.tracking.names import TIME_FIELDS
from smet_train.train import saver
from smet_train.train.checkpoint import save_checkpoint
from tests.forked import context, unpredicted

_MEASURED_BYTES = ("rss_bytes", "device_bytes")  # what the machine says of the process
_LONGEST_S = 120

# What a child does before it trains: patch something. Pickled, so a function of a module.
Hook = Callable[[], None]


def warm_up() -> None:
    """Wait until the fork server has imported everything, before the time that a run takes is measured."""
    process = context.Process(target=int)
    process.start()
    process.join()


def start(config: Config, folder: Path, *hooks: Hook) -> BaseProcess:
    """Train ``config`` in ``folder`` as the command line would, in a child, its output in console.log."""
    process = context.Process(target=_child, args=(config, folder, hooks))
    process.start()
    return process


def run(config: Config, folder: Path, *hooks: Hook) -> int:
    """The exit status of :func:`start`, waited for."""
    process = start(config, folder, *hooks)
    return end(process)


def end(process: BaseProcess) -> int:
    """Wait for a child; one that hangs fails the test, and its console.log says where it was."""
    process.join(_LONGEST_S)
    if process.exitcode is None:
        abort(process)
        raise AssertionError(f"a process was still running after {_LONGEST_S} s; its console.log says where")
    return process.exitcode


def abort(process: BaseProcess) -> None:
    """End a child, which writes down the stacks of its threads; nothing, if it has ended."""
    if process.exitcode is None and process.pid is not None:
        os.kill(process.pid, signal.SIGABRT)
        process.join()


def _child(config: Config, folder: Path, hooks: tuple[Hook, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the command line does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the suite's own nohup would have it ignore
    torch.set_num_threads(1)
    faulthandler.enable(2)  # as well
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "console.log").open("a", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    unpredicted()
    for hook in hooks:
        hook()
    try:
        status = job.run_training(config, folder, Console(file=io.StringIO(), markup=False))
    except SmetError as error:
        if not error.told:
            print(f"smet-train: {error}", file=sys.stderr, flush=True)
        status = error.exit_status
    sys.exit(status)


def outcome(folder: Path, step: int) -> dict[str, Any]:
    """All that a run has made, by name: weights, index, moments, ages, schedule, random state, position in the data
    (all of the checkpoint of ``step``), and metrics.jsonl without what depends on the clock."""
    path = folder / "checkpoints" / f"step_{step:08d}"
    tensors = sorted(file for pattern in ("*.safetensors", "sharded/*") for file in path.glob(pattern))
    files = {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in tensors}
    plain = json.loads((path / "state.json").read_text(encoding="utf-8"))
    kept = {f"state.json {key}": value for key, value in plain.items() if key not in ("metrics_bytes", "config")}
    return {**files, **kept, **{f"event {number}": event for number, event in enumerate(trace(folder), 1)}}


def digest(folder: Path, step: int) -> str:
    """SHA-256 of :func:`outcome`."""
    return hashlib.sha256(json.dumps(outcome(folder, step), sort_keys=True).encode()).hexdigest()


def difference(folder: Path, whole: Path, step: int) -> str | None:
    """Where the outcome of ``folder`` is not that of ``whole``; None if they are equal."""
    found, expected = outcome(folder, step), outcome(whole, step)
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    told = [f"{name}: {str(found.get(name))[:300]}, not {str(expected.get(name))[:300]}" for name in names]
    return "\n".join([f"{folder} ends differently", *told[:10]]) if names else None


def trace(folder: Path) -> list[dict[str, Any]]:
    """The events of a run without what depends on the clock and on the machine's memory."""
    return [
        {key: value for key, value in event.items() if key not in TIME_FIELDS and not key.endswith(_MEASURED_BYTES)}
        for event in read_events(folder / "metrics.jsonl")
    ]


def output(folder: Path) -> str:
    return (folder / "console.log").read_text(encoding="utf-8")


class KillInSave:
    """SIGKILL in the writing of the ``number``-th save, after ``part`` of the time that the one before it took."""

    def __init__(self, number: int, part: float) -> None:
        self.number = number
        self.part = part

    def __call__(self) -> None:
        calls, took_s = 0, 0.02

        def save(*arguments: Any) -> Path:
            nonlocal calls, took_s
            calls += 1
            if calls == self.number:
                threading.Thread(target=self._kill, args=(self.part * took_s,), daemon=True).start()
            started_s = time.monotonic()
            written = save_checkpoint(*arguments)
            took_s = time.monotonic() - started_s
            return written

        sys.setswitchinterval(1e-5)
        vars(saver)["save_checkpoint"] = save

    @staticmethod
    def _kill(delay_s: float) -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)


def kill_within(process: BaseProcess, longest_s: float, draw: Random) -> None:
    """SIGKILL at a random moment of the next ``longest_s`` seconds."""
    process.join(draw.random() * longest_s)
    process.kill()
    process.join()
