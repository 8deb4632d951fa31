"""What a step takes in memory and operations, predicted once a run trains; told, and kept beside what is measured."""

import logging
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from rich.console import Console

from smet_train.analysis.summary import format_bytes
from smet_train.tracking.jsonl import each_event
from smet_train.tracking.resources import memory_use
from smet_train.train.run import Run

log = logging.getLogger(__name__)

Predict = Callable[[], tuple[dict[str, int], int | None]]


class Prediction:
    """A sink that predicts after the first step of a start, because a prediction takes about as long as that step.

    It prints the peak, and writes the event ``plan`` if the run has none yet. Whatever measures time must come after it
    among the sinks.

    Args:
        predict: the bytes by kind, with the ``peak`` of all tensors, and the operations of a step; neither for a model
            that can't be predicted.
    """

    def __init__(self, console: Console, run: Run, predict: Predict) -> None:
        self._console = console
        self._run = run
        self._predict: Predict | None = predict

    def emit(self, event: dict[str, Any]) -> None:
        """Predict once, after a ``train`` event.

        Raises:
            what ``predict`` raises: the tracker then goes on without the prediction, and warns.
        """
        if event["event"] != "train" or self._predict is None:
            return
        predict, self._predict = self._predict, None
        run = self._run
        before = memory_use(torch.device("cpu"))["rss_bytes"]
        with run.throughput.paused():
            planned, step_flops = predict()
        # What the prediction has imported is no memory of the model.
        run.start_rss_bytes += max(0, memory_use(torch.device("cpu"))["rss_bytes"] - before)
        if step_flops is not None and not self._is_written():
            run.tracker.emit({"event": "plan", "step": run.state.step, "step_flops": step_flops})
        if planned and run.sharded is None:  # the prediction is of a process that holds everything
            run.planned = planned
            peak = format_bytes(planned["peak"])
            line = f"memory      {peak} in tensors at most, as predicted; torch and data come on top"
            self._console.print(line, soft_wrap=True)
            log.info("%s", line)

    def _is_written(self) -> bool:
        """Whether the metrics file has the operations of a step, in its first event or before the second step."""
        begun = 0

        def before_second_step(event: dict[str, Any]) -> bool:
            nonlocal begun
            begun += event["event"] == "train"
            return begun < 2

        events = takewhile(before_second_step, each_event(self._run.folder / "metrics.jsonl"))
        return any(event.get("step_flops") is not None for event in events)

    def close(self) -> None:
        """Nothing is open."""
