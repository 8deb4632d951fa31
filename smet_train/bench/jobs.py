"""Many training runs, a few at a time, each in a folder of its own; typed again, finished ones are kept."""

import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from smet_train.config.schema import Config
from smet_train.errors import SmetError
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events

_SECONDS_TO_SAVE = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Validation losses of one run by step, in nats a token, and what it is made of."""

    losses: dict[int, float]
    tokens: int
    parameters_active: int

    @property
    def final(self) -> float:
        """The validation loss of the last step that was evaluated, nats a token."""
        return self.losses[max(self.losses)]

    def late(self, evaluations: int) -> float:
        """The mean of the last ``evaluations``: one alone carries the noise of the last few steps."""
        last = sorted(self.losses)[-evaluations:]
        return sum(self.losses[step] for step in last) / len(last)


def run_jobs(jobs: Mapping[str, Config], folder: Path, workers: int, say: Callable[[str], None]) -> dict[str, Outcome]:
    """Train each configuration in ``folder/<name>``.

    Raises:
        SmetError: what the first run that fails says, with its name.
    """
    outcomes: dict[str, Outcome] = {}
    # Forking this process, which has used threads, can hang. Workers are forks of one that has imported all they need
    # and computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["smet_train.job"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(_train, config, folder / name): name for name, config in jobs.items()}
        for done in as_completed(futures):
            name = futures[done]
            try:
                done.result()
            except SmetError as error:
                pool.shutdown(cancel_futures=True)
                raise SmetError(f"run {name}: {error}", exit_status=error.exit_status) from error
            outcomes[name] = read_outcome(folder / name)
            say(f"[{len(outcomes)}/{len(jobs)}] {name}: validation loss {outcomes[name].final:.4f}")
    return {name: outcomes[name] for name in jobs}


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that gives the jobs, however it ends; then let the run save, and end too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_SAVE)
    os._exit(128 + signal.SIGTERM)


def _train(config: Config, folder: Path) -> None:
    try:
        run_training(config, folder, Console(file=io.StringIO(), markup=False))
    finally:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # nobody waits for the result, or gives another job
            os._exit(128 + signal.SIGTERM)


def read_outcome(folder: Path) -> Outcome:
    """What a finished run has written down."""
    events: list[dict[str, Any]] = read_events(folder / "metrics.jsonl")
    end = next(event for event in reversed(events) if event["event"] == "end")
    losses = {int(event["step"]): float(event["loss"]) for event in events if event["event"] == "eval"}
    return Outcome(losses, int(end["tokens"]), int(end["parameters_active"]))
