"""The training loop."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from smet_train.sparse.ledger import count_parameters, measure
from smet_train.tracking.resources import memory_use
from smet_train.train.checkpoint import checkpoint_path, latest_checkpoint, save_checkpoint
from smet_train.train.evaluate import mean_loss, perplexity
from smet_train.train.run import Run
from smet_train.train.state import capture
from smet_train.train.step import forward_backward, token_loss

log = logging.getLogger(__name__)


def train(run: Run) -> str:
    """Train until ``total_steps`` or until a stop is requested; returns the reason: "finished" or a signal's name.

    A run that stops for whatever reason saves a checkpoint first, from which the same command goes on. The topology
    moves at the start of a step, if it is due after the step before: so a finished run holds no weight that was never
    trained, its losses are those of the weights it saved, and when it is extended the update is made up for.
    """
    run.stop.interruptible = False
    if run.fresh:
        evaluate(run)

    while run.state.step < run.settings.total_steps and run.stop.reason is None:
        move_topology(run)
        report(run, run.spikes.before_step(run.state.step + 1))
        lr = set_learning_rate(run)
        loss, grad_norm = take_step(run)
        run.state.step += 1
        run.state.tokens += run.settings.tokens_per_step
        report_step(run, loss, lr, grad_norm)
        if due(run.settings.eval_interval, run.state.step):
            evaluate(run)
        if due(run.settings.checkpoint_interval, run.state.step):
            report_checkpoint(run)
            save(run)

    return finish(run)


def due(interval: int, step: int) -> bool:
    """Every ``interval`` steps, never if 0."""
    return interval > 0 and step % interval == 0


def report(run: Run, events: list[dict[str, Any]]) -> None:
    for event in events:
        run.tracker.emit(event)


def take_step(run: Run) -> tuple[float, float]:
    """Forward, backward and the optimizer's step; returns the loss and the norm of its gradient before clipping."""
    with run.fused or nullcontext():
        loss = forward_backward(run.model, run.batches, run.settings.micro_batches, run.device, run.settings.precision)
    if run.fused is not None:
        return loss, run.fused.grad_norm()
    grad_norm = clip_gradients(run)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return loss, grad_norm


def clip_gradients(run: Run) -> float:
    """Clip to the global norm over all parameters, sparse values included; returns the norm before clipping."""
    max_norm = run.settings.grad_clip or float("inf")
    return float(clip_grad_norm_(run.model.parameters(), max_norm))


def set_learning_rate(run: Run) -> float:
    """Set the schedule's learning rate for the step about to be taken; returns it, before any density scale."""
    lr = run.settings.lr * run.lr_schedule.factor(run.state.step + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    return lr


def report_step(run: Run, loss: float, lr: float, grad_norm: float) -> None:
    run.tracker.emit(
        {
            "event": "train",
            "step": run.state.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": run.state.tokens,
            "tokens_per_s": run.throughput.step(run.settings.tokens_per_step),
            "time_s": time.time(),
        }
    )
    report(run, run.spikes.after_step(run.state.step, loss))


def evaluate(run: Run) -> None:
    with run.throughput.paused():
        loss = mean_loss(run.model, run.validation, run.settings.micro_batch_size, run.settings.precision)
    tokens = run.validation.shape[0] * (run.validation.shape[1] - 1)
    run.tracker.emit(
        {"event": "eval", "step": run.state.step, "loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
    )


def move_topology(run: Run) -> None:
    """Move the topology if it is due, and watch the losses that follow."""
    if not run.topology.due(run.state.step):
        return
    with run.throughput.paused():
        probe_baseline = run.spikes.probe_baseline()
        moved = run.topology.step(run.state.step, probe_batches(run))
        run.optimizer.zero_grad(set_to_none=True)  # the probe leaves gradients of what is dense
    report(run, run.spikes.topology_moved(run.state.step, probe_baseline))
    run.tracker.emit({"event": "topology", "step": run.state.step, **moved})


def probe_batches(run: Run) -> list[Callable[[], None]]:
    """The backward passes that the update looks at: of the coming steps' batches, which are trained on afterwards."""
    if not run.topology.rules.needs_gradient:
        return []
    batches = run.batches.peek(run.settings.micro_batches * run.settings.probe_steps)

    def backward(batch: Tensor) -> None:
        token_loss(run.model, batch.to(run.device), run.settings.precision).backward()

    return [partial(backward, batch) for batch in batches]


def report_checkpoint(run: Run) -> None:
    path = checkpoint_path(run.checkpoints, run.state.step)
    run.tracker.emit({"event": "checkpoint", "step": run.state.step, "path": str(path.relative_to(run.folder))})


def save(run: Run) -> None:
    """Write a checkpoint. A scheduled one is reported before, so that its event is part of the saved position."""
    started_s = time.monotonic()
    with run.throughput.paused():
        path = save_checkpoint(run.checkpoints, run.state.step, capture(run), run.settings.checkpoint_keep)
    log.info("checkpoint of step %d in %.2f s: %s", run.state.step, time.monotonic() - started_s, path)


def report_memory(run: Run) -> None:
    """What is held by kind and has been held at most, beside what was predicted."""
    kinds = [
        {**row.as_dict(), **({"planned_bytes": run.planned[row.kind]} if row.kind in run.planned else {})}
        for row in [*measure(run.model, run.optimizer, fused=run.fused is not None), *run.topology.ledger()]
    ]
    event = {"event": "memory", "step": run.state.step, **memory_use(run.device)}
    if run.planned:
        event |= {"start_rss_bytes": run.start_rss_bytes, "planned_peak_bytes": run.planned["peak"]}
    run.tracker.emit({**event, "kinds": kinds})


def finish(run: Run) -> str:
    """Save, and write down how the run ended.

    What is written after the save is not part of the saved position: a run that goes on, after a signal or with more
    steps, writes the same file as one that never stopped. A run killed in here comes back here.
    """
    step = run.state.step
    finished = step >= run.settings.total_steps
    reason = "finished" if finished else run.stop.reason or "stopped"
    if latest_checkpoint(run.checkpoints) != checkpoint_path(run.checkpoints, step):
        save(run)
        report_checkpoint(run)
    if finished:
        if not due(run.settings.eval_interval, step):
            evaluate(run)
        report(run, run.spikes.finish())
    report_memory(run)
    run.tracker.emit(
        {
            "event": "end",
            "step": step,
            "reason": reason,
            "tokens": run.state.tokens,
            "parameters_active": count_parameters(run.model)[0],
            "time_s": time.time(),
        }
    )
    return reason
