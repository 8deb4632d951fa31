"""The training loop."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from smet_train.errors import CheckpointError, DataError, SmetError, memory_shortage
from smet_train.sparse.ledger import count_parameters, measure
from smet_train.sparse.shards import is_sharded
from smet_train.tracking.resources import memory_use
from smet_train.train.agreement import SameTopology
from smet_train.train.checkpoint import checkpoint_path
from smet_train.train.evaluate import Interrupted, mean_loss, perplexity
from smet_train.train.guard import RollBack, first_not_finite
from smet_train.train.processes import lost_process_told
from smet_train.train.recovery import go_back, note_incident
from smet_train.train.run import Run
from smet_train.train.state import capture
from smet_train.train.step import forward_backward, token_loss

log = logging.getLogger(__name__)

_POLL_S = 0.5  # how long a stop may go unnoticed while a source keeps a run waiting


def train(run: Run) -> str:
    """Train until ``total_steps`` or until a stop is requested; returns the reason: "finished" or what asked to stop.

    A run that stops for whatever reason saves a checkpoint first, from which the same command goes on. The topology
    moves at the start of a step, if it is due after the step before: so a finished run holds no weight that was never
    trained, its losses are those of the weights it saved, and when it is extended the update is made up for. The data
    of a step are read before anything else of it is done, so that a source that fails leaves a whole state to save.

    Raises:
        RollBack: if the numbers are bad and the run has to start again from its newest checkpoint.
        TrainingError: if they are bad and it has done so before.
        DataError: if the source can't be read any more; the steps until then are saved.
        CheckpointError: if a checkpoint can't be written.
    """
    run.stop.arm()
    with end_told(run):
        catch_up(run)
        while not run.finished and not asked_to_stop(run):
            if not read_ahead(run):
                break
            move_topology(run)
            report(run, run.spikes.before_step(run.state.step + 1))
            lr = set_learning_rate(run)
            sound = try_step(run)
            if sound is None:
                continue  # the same step, on the batches that come next
            loss, grad_norm = sound
            run.state.step += 1
            run.state.tokens += run.settings.tokens_per_step
            report_step(run, loss, lr, grad_norm)
            catch_up(run)
        return finish(run)


def asked_to_stop(run: Run) -> bool:
    """Whether any process of the run was asked to stop when they asked each other; then all of them are. A signal that
    comes later, to some of them perhaps, counts the next time."""
    agreed = run.processes.highest(run.stop.code)
    run.stop.take(agreed)
    return agreed > 0


@contextmanager
def end_told(run: Run) -> Iterator[None]:
    """Write down the end of a run that ends by an error."""
    try:
        yield
    except RollBack:
        raise
    except Exception as error:
        with suppress(SmetError):  # the metrics file may be what has failed
            report_end(run, f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def catch_up(run: Run) -> None:
    """Save and evaluate if that is due after the latest step; what a stop cuts short is done when the run goes on.

    The save comes first, because an evaluation may run out of memory, and on a CPU the system then kills the process.
    """
    step, state = run.state.step, run.state
    if step > 0 and due(run.settings.checkpoint_interval, step) and state.reported_step < step:
        state.reported_step = step
        report_checkpoint(run)
        save(run)
    if (step == 0 or due(run.settings.eval_interval, step)) and state.evaluated_step < step:
        save_before_evaluation(run)
        if evaluate(run) and step > 0:
            run.has_evaluated = True


def save_before_evaluation(run: Run) -> None:
    """Save once a start, without an event, before the first evaluation that comes after a step: it alone needs more
    memory than all that came before. Not in a run that is to save at its end alone."""
    if run.state.step > 0 and run.settings.checkpoint_interval > 0 and not run.has_evaluated:
        if save(run):
            run.untold_step = run.state.step
        run.saver.newest()  # waits until it is written


def read_ahead(run: Run) -> bool:
    """Wait for the batches of the coming step; False if a stop is requested before they are there.

    If there will be none, what was trained until now is saved.
    """
    needed = batches_needed(run)
    try:
        while len(run.batches.peek(needed, _POLL_S)) < needed:
            if asked_to_stop(run):
                return False
        return True
    except DataError:
        save_what_is_there(run)
        raise


def save_what_is_there(run: Run) -> None:
    """Save the steps until now in a run that ends by an error; that of the save is a warning."""
    if run.state.step > 0:
        try:
            save(run, last=True)
        except CheckpointError as error:
            log.warning("%s", error)


def batches_needed(run: Run) -> int:
    """This process's micro-batches of the coming step, with those that a topology update before it looks at."""
    probes = run.topology.due(run.state.step) and run.topology.rules.needs_gradient
    return run.settings.micro_batches * (run.settings.probe_steps if probes else 1)


def due(interval: int, step: int) -> bool:
    """Every ``interval`` steps, never if 0."""
    return interval > 0 and step % interval == 0


def report(run: Run, events: list[dict[str, Any]]) -> None:
    """Pass on several events in their order."""
    for event in events:
        run.tracker.emit(event)


def try_step(run: Run) -> tuple[float, float] | None:
    """The optimizer's step on the coming batches; returns their loss and the gradient's norm before clipping. If these
    are not sound, None: the batches are passed over, and the step is still to be taken.

    Raises:
        RollBack, TrainingError: if too many in a row are not, or if a fused step was half done when it showed.
    """
    loss, grad_norm = compute_gradients(run)
    fault = run.guard.fault(loss, grad_norm)
    if fault is None:
        if run.fused is None:
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        return loss, grad_norm
    run.optimizer.zero_grad(set_to_none=True)
    if run.guard.exhausted or (run.fused is not None and run.fused.half_done):
        go_back(run, fault)
    note_incident(run, fault, "passed over")
    return None


def compute_gradients(run: Run) -> tuple[float, float]:
    """Forward and backward; returns the loss and the norm of its gradient before clipping. A fused step is made too,
    if its gradients are finite."""
    run.processes.begin_step(run.state.step + 1)
    with run.fused or nullcontext(), lost_process_told():
        loss = forward_backward(run.loss, run.batches, run.settings.micro_batches, run.device)
    [summed] = run.processes.sums(loss)
    return summed / run.processes.size, clip_gradients(run) if run.fused is None else run.fused.grad_norm()


def clip_gradients(run: Run) -> float:
    """Clip to the global norm over all parameters, sparse values included; returns the norm before clipping."""
    max_norm = run.settings.grad_clip or float("inf")
    with lost_process_told():
        norm = clip_grad_norm_(run.model.parameters(), max_norm)
        return float(norm.full_tensor() if is_sharded(norm) else norm)  # type: ignore[attr-defined]


def set_learning_rate(run: Run) -> float:
    """Set the schedule's learning rate for the step about to be taken; returns it, before any density scale."""
    lr = run.settings.lr * run.lr_schedule.factor(run.state.step + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    return lr


def report_step(run: Run, loss: float, lr: float, grad_norm: float) -> None:
    """The ``train`` event of the step just taken, and a spike whose window it closes."""
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
            **run.processes.sent(),
        }
    )
    report(run, run.spikes.after_step(run.state.step, loss))


def evaluate(run: Run) -> bool:
    """Report the validation loss; False if a stop was requested meanwhile, and the evaluation given up."""
    try:
        with run.throughput.paused():
            loss = mean_loss(
                run.model,
                run.validation,
                run.settings.micro_batch_size,
                run.settings.precision,
                give_up=lambda: run.stop.reason,
                processes=run.processes,
                sharded=run.sharded,
            )
    except Interrupted:
        return False
    except Exception as error:
        if memory_shortage(error) is not None and run.processes.size == 1:  # others would wait in the evaluation
            save_what_is_there(run)
        raise
    run.state.evaluated_step = run.state.step
    tokens = run.validation.shape[0] * (run.validation.shape[1] - 1)
    run.tracker.emit(
        {"event": "eval", "step": run.state.step, "loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
    )
    return True


def move_topology(run: Run) -> None:
    """Move the topology if it is due, and watch the losses that follow."""
    if not run.topology.due(run.state.step):
        return
    run.processes.begin_step(run.state.step + 1)  # the probe draws dropout too, and the same when the run goes on
    with run.throughput.paused():
        probe_baseline = run.spikes.probe_baseline()
        same = SameTopology(run.processes)
        moved = run.topology.step(run.state.step, probe_batches(run), same.look)
        run.optimizer.zero_grad(set_to_none=True)  # the probe leaves gradients of what is dense
        same.check(run.state.step)
        if run.topology.rules.prunes:
            run.loss.renew()
    if run.topology.fault is not None:
        note_incident(run, run.topology.fault, "the topology stays as it is")
    report(run, run.spikes.topology_moved(run.state.step, probe_baseline))
    run.tracker.emit({"event": "topology", "step": run.state.step, **moved, **run.processes.sent()})
    report(run, run.topology_map.events(run.state.step))


def probe_batches(run: Run) -> list[Callable[[], None]]:
    """The backward passes that the update looks at: of the coming steps' batches, which are trained on afterwards."""
    if not run.topology.rules.needs_gradient:
        return []
    batches = run.batches.peek(batches_needed(run))

    def backward(batch: Tensor) -> None:
        windows = batch.to(run.device)
        with lost_process_told():
            loss = run.sharded(windows) if run.sharded else token_loss(run.model, windows, run.settings.precision)
            loss.backward()

    return [partial(backward, batch) for batch in batches]


def report_checkpoint(run: Run) -> None:
    """The ``checkpoint`` event, its path relative to the run folder."""
    path = checkpoint_path(run.checkpoints, run.state.step)
    run.tracker.emit({"event": "checkpoint", "step": run.state.step, "path": str(path.relative_to(run.folder))})


def save(run: Run, *, last: bool = False) -> bool:
    """Write a checkpoint; False if this step has one. A scheduled one is reported before, so that its event is part of
    the saved position.

    Raises:
        RollBack, TrainingError: if the state holds a NaN or an infinity; it is not written.
    """
    if run.saver.has(run.state.step):
        return False
    started_s = time.monotonic()
    with run.throughput.paused():
        snapshot = capture(run)
        found = run.processes.each(lambda: first_not_finite(snapshot.held))
        bad = next((name for name in found if name is not None), None)
        if bad is not None:
            go_back(run, f"the state to be saved is not finite ({bad})")
        run.saver.save(run.state.step, snapshot, last=last)
    log.info("checkpoint of step %d: the loop waited %.2f s", run.state.step, time.monotonic() - started_s)
    return True


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

    What is written after the save is not part of the saved position: a run that goes on, after a stop or with more
    steps, writes the same file as one that never stopped. A run killed in here comes back here.
    """
    saved_now = save(run, last=True) or run.untold_step == run.state.step
    reported = 0 < run.state.step == run.state.reported_step  # when it was due; it may have failed then
    if (saved_now or run.finished) and not reported:
        report_checkpoint(run)
    complete = run.finished and (run.state.evaluated_step == run.state.step or evaluate(run))
    if complete:
        report(run, run.spikes.finish())
    else:
        asked_to_stop(run)  # by another process perhaps, in the middle of the evaluation
    report_memory(run)
    reason = "finished" if complete else str(run.stop.reason)
    report_end(run, reason)
    return reason


def report_end(run: Run, reason: str) -> None:
    """The ``end`` event; ``reason`` is finished, a signal's name, or the error."""
    run.tracker.emit(
        {
            "event": "end",
            "step": run.state.step,
            "reason": reason,
            "tokens": run.state.tokens,
            "parameters_active": count_parameters(run.model)[0],
            "passed_over": run.guard.passed_over,
            "rollbacks": run.guard.rollbacks,
            "time_s": time.time(),
        }
    )
