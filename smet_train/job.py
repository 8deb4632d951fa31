"""One training run from a validated configuration to the closing summary."""

import gc
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from smet_train import __version__, opening
from smet_train.analysis.closing import next_lines, stopped_lines, where_lines
from smet_train.analysis.layers import print_layers
from smet_train.analysis.prediction import Prediction
from smet_train.analysis.summary import print_run_summary
from smet_train.build import beginning, build_run, rates_line, remarks, run_header
from smet_train.build_data import build_shared_data
from smet_train.config.continuation import (
    Change,
    about_changed_files,
    changes_text,
    check_continuation,
    record_resume,
)
from smet_train.config.new_folder import check_own
from smet_train.config.paths import PATH_KEYS, with_absolute_paths
from smet_train.config.plain import flatten, save_config, to_dict
from smet_train.config.plugins import load_plugins
from smet_train.config.schema import Config
from smet_train.config.validate import check_processes
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import CheckpointError, DataError
from smet_train.offspring import gets_signals_twice
from smet_train.sparse.ledger import count_parameters, sparse_layers
from smet_train.sparse_model import Backends, Vocabulary, explain_backends, model_remarks
from smet_train.trackers import add_trackers, note_lines, publish_report
from smet_train.tracking.console import ConsoleSink, open_console
from smet_train.tracking.estimate import TimeEstimate
from smet_train.tracking.resources import memory_use
from smet_train.tracking.shelter import Sheltered
from smet_train.train import files
from smet_train.train.agreement import check_same_settings, check_same_start
from smet_train.train.checkpoint import load_checkpoint, load_plain
from smet_train.train.device import choose_device
from smet_train.train.guard import RollBack
from smet_train.train.heap import release_freed_memory
from smet_train.train.imports import import_what_steps_use
from smet_train.train.lock import run_folder_lock
from smet_train.train.loop import train
from smet_train.train.processes import Processes, joined, lost_process_told
from smet_train.train.resume import (
    choose_checkpoint,
    finished_step,
    is_finished,
    is_own,
    refuse_to_overwrite,
    set_later_aside,
)
from smet_train.train.run import Run
from smet_train.train.signals import StopRequest
from smet_train.train.state import held_tensors, restore

log = logging.getLogger(__name__)

# A scheduler's signal to all processes reaches a run's a second time, from what has started them and passes signals on.
_ECHO_S = 2.0


def run_training(config: Config, run_folder: Path, console: Console | None = None) -> int:
    """Train in ``run_folder``, or say that it is finished; returns the exit status, 0.

    Raises:
        SmetError: with a message for the user, for everything that is wrong with settings, data or checkpoints.
    """
    console = console or open_console()
    config = with_absolute_paths(config)
    load_plugins(config.plugins)
    if config.train.release_freed_memory:
        release_freed_memory()
    if config.train.deterministic:
        compute_deterministically()
    with (
        joined(
            config.train.device.name, config.train.processes, config.seed, config.train.max_silence_minutes * 60
        ) as processes,
        StopRequest(hours(config.train.max_hours), echo_s=_ECHO_S if gets_signals_twice() else 0.0) as stop,
        ExitStack() as held,
    ):
        check_same_settings(processes, shared_settings(config))
        processes.told(lambda: check_processes(config, processes.size))
        if not processes.leads:
            console = Console(quiet=True, markup=False)  # which it reads all the same
        run_folder, checkpoint, changes = processes.told(lambda: begin(config, run_folder, held, console))
        if processes.told(lambda: is_finished(run_folder, checkpoint, config.train.steps)):
            tell_finished(console, config, run_folder, checkpoint)
            return 0
        back = None
        while True:
            try:
                _train(config, run_folder, checkpoint, changes, back, stop, console, processes)
                return 0
            except RollBack as error:
                back = error.with_traceback(None)  # whose frames would keep the run in memory
            changes = []  # told and recorded when the first attempt began
            gc.collect()
            checkpoint = processes.told(lambda: choose_checkpoint("auto", run_folder))
            console.print(f"going back to {checkpoint}: see {run_folder / 'incidents.jsonl'}", soft_wrap=True)


def begin(
    config: Config, run_folder: Path, held: ExitStack, console: Console
) -> tuple[Path, Path | None, list[Change]]:
    """Lock the run folder for as long as ``held`` is open; returns it, the checkpoint to start from, and changes."""
    check_own(run_folder, config.checkpoint.follow_link)
    held.enter_context(run_folder_lock(run_folder))
    files.remove_leftovers(run_folder / "checkpoints")
    checkpoint = choose_checkpoint(
        config.checkpoint.resume, run_folder, check_all=config.checkpoint.verify.name == "full"
    )
    if checkpoint is None or not is_own(checkpoint, run_folder):
        refuse_to_overwrite(run_folder, checkpoint, config.train.steps)
    if checkpoint is not None:
        with opening.malformed(str(checkpoint), CheckpointError, "resume from another checkpoint"):
            return run_folder, checkpoint, check_continuation(load_plain(checkpoint), config, checkpoint, run_folder)
    if (run_folder / "metrics.jsonl").is_file() and finished_step(run_folder) is None:
        console.print("no checkpoint yet: the run starts over at step 0")
    return run_folder, None, []


def shared_settings(config: Config) -> dict[str, Any]:
    """What the processes of a run must have in common before they begin: settings by dotted keys, and versions.

    Of a path only whether it is given: a file may lie elsewhere on another machine; what it makes is compared later.
    """
    settings = flatten(to_dict(config))
    given = {key: settings[key] and "given" for key in PATH_KEYS}
    return {**settings, **given, "smet-train": __version__, "torch": str(torch.__version__)}


def hours(budget: float | None) -> float | None:
    """Hours in seconds."""
    return None if budget is None else budget * 3600


def compute_deterministically() -> None:
    """Let torch refuse what may differ between two runs; cuBLAS needs its workspace fixed before it is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def tell_finished(console: Console, config: Config, run_folder: Path, checkpoint: Path | None) -> None:
    """The summary again, and how to extend the run, if ``checkpoint`` is there, or start over."""
    print_run_summary(console, run_folder)
    step = finished_step(run_folder)
    extend = (
        "Its checkpoints are gone, so that it can't be extended"
        if checkpoint is None
        else f"To extend it, type the same command with more steps, for instance train.steps={2 * config.train.steps}"
    )
    console.print(
        f"This run is finished at step {step}: {run_folder}\n"
        f"{extend}; to start over in a fresh folder, add checkpoint.resume=never.",
        soft_wrap=True,
    )


def _train(
    config: Config,
    run_folder: Path,
    checkpoint: Path | None,
    changes: Sequence[Change],
    back: RollBack | None,
    stop: StopRequest,
    console: Console,
    processes: Processes,
) -> None:
    """One attempt: from ``checkpoint`` on, or with the data and counts of ``back`` if the attempt before went wrong."""
    # A device that is not there is said before minutes go into data.
    device = choose_device(config.train.device.name, "train.device=")
    tokenizer_file = find_tokenizer(run_folder, checkpoint)
    console.print("preparing the data …" if tokenizer_file else "preparing the data and its tokenizer …")
    with closing(build_shared_data(config, tokenizer_file, processes)) as data:
        if processes.leads:
            if tokenizer_file is None or tokenizer_file.parent.resolve() != run_folder.resolve():
                save_tokenizer(
                    data.tokenizer, run_folder
                )  # not over that of a run: its checkpoints know it by its hash
            if checkpoint is None:
                save_config(config, run_folder / "config.yaml")
        backends = chosen_backends(config, checkpoint)
        import_what_steps_use(device.type)
        start_rss_bytes = memory_use(torch.device("cpu"))["rss_bytes"]
        build = partial(build_run, config, run_folder, data, stop, restores=checkpoint is not None, processes=processes)
        run = build_alike(build, backends, processes)
        run.start_rss_bytes = start_rss_bytes
        try:
            start(run, config, checkpoint, changes)
            check_same_start(processes, run.model, {} if run.sharded is None else run.sharded.before_split)
            if processes.leads and checkpoint is not None:
                # Not before: settings that turn out wrong must not take the place of those that the run goes on with.
                save_config(config, run_folder / "config.yaml")
            if back is not None:
                run.batches.load_state_dict(back.position)
                run.guard.load_state_dict(back.guard)
            announce(console, config, run, data.description, backends)
            for line in changes_text(changes, config):
                console.print(line, soft_wrap=True, markup=False)
                log.info("%s", line)
            trackers: list[Sheltered] = []
            if processes.leads:
                trackers = add_sinks(config, run, data.tokenizer, console)
            reason = train(run)
            if reason == "finished":
                publish_report(trackers, run_folder)
        finally:
            run.saver.close()
            run.tracker.close()
    if processes.leads:
        close(console, run, reason, trackers)


def save_tokenizer(tokenizer: TextTokenizer, run_folder: Path) -> None:
    """Keep a copy in the run folder.

    Raises:
        CheckpointError: if it can't be written (disk full, no permission).
    """
    try:
        tokenizer.save(run_folder, files.replace_text)
    except OSError as error:
        raise CheckpointError(
            f"the tokenizer can't be kept in {run_folder}: {error}; make room or permission and start the same command "
            "again",
            exit_status=1,
        ) from error


def build_alike(build: Callable[[Backends], Run], backends: Backends, processes: Processes) -> Run:
    """A run in each of ``processes``, all computed by the backends that the first one has chosen: it alone measures."""
    run: list[Run] = []

    def lead() -> Backends:
        run.append(build(backends))
        return {name: layer.backend.name for name, layer in sparse_layers(run[0].model).items()}

    chosen = processes.told(lead)
    return run[0] if run else build(chosen)


def chosen_backends(config: Config, checkpoint: Path | None) -> Backends:
    """What ``sparsity.backend=auto`` chose for each layer when the run of ``checkpoint`` began; empty if another
    backend was named then or is now.

    The user's cache may have gone since, and another choice would have other rounding.
    """
    saved = {} if checkpoint is None else load_plain(checkpoint)
    with opening.malformed(str(checkpoint), CheckpointError, "resume from another checkpoint"):
        chose = saved.get("config", {}).get("sparsity", {}).get("backend") == "auto"
        backends = {str(layer): str(name) for layer, name in saved.get("backends", {}).items()}
    return backends if chose and config.sparsity.backend.name == "auto" else {}


def predict(config: Config, tokenizer: Vocabulary, backends: Backends) -> tuple[dict[str, int], int | None]:
    """Predicted bytes by kind, and of the peak of all tensors, and the operations of a step; nothing for a model whose
    shapes depend on numbers."""
    from smet_train.analysis.planning import (
        Unpredictable,
        plan_run,
    )  # with it come torch's counter of operations, and triton

    try:
        footprint = plan_run(config, vocabulary=tokenizer, backends=backends).footprint
    except Unpredictable as error:
        log.info("%s", error)
        return {}, None
    return {**{row.kind: row.bytes for row in footprint.rows}, "peak": footprint.peak_bytes}, footprint.flops


def find_tokenizer(run_folder: Path, checkpoint: Path | None) -> Path | None:
    """The tokenizer that a checkpoint was trained with: it lies in the checkpoint's run folder."""
    folder = run_folder if checkpoint is None else checkpoint.parent.parent
    path = folder / "tokenizer.json"
    return path if checkpoint is not None and path.is_file() else None


def start(run: Run, config: Config, checkpoint: Path | None, changes: Sequence[Change]) -> None:
    """Put the run at its first step or where the checkpoint was taken."""
    if checkpoint is None:
        run.metrics.truncate(0)  # what a run that died before its first checkpoint has left
        begin_metrics(run, config)
        return
    own = is_own(checkpoint, run.folder)
    try:
        into = None if run.sharded is None else held_tensors(run)[0]
        with lost_process_told():
            restore(run, load_checkpoint(checkpoint, into), same_folder=own)
    except DataError as error:
        raise about_changed_files(error, changes) from error
    run.processes.told(lambda: set_later_aside(checkpoint) if own else None)
    if run.processes.leads:
        record_resume(run.folder, checkpoint, run.state.step, changes)
    if not own:
        run.metrics.truncate(0)  # what an attempt that died before its first checkpoint has left
        begin_metrics(run, config)
    log.info("resumed from %s", checkpoint)


def begin_metrics(run: Run, config: Config) -> None:
    """The first events of a run folder: what is trained, and the topology that it begins with."""
    run.tracker.emit(run_header(config, run))
    for event in run.topology_map.events(run.state.step):
        run.tracker.emit(event)


def add_sinks(config: Config, run: Run, tokenizer: Vocabulary, console: Console) -> list[Sheltered]:
    """The progress display, the trackers that are asked for (returned), the prediction, and the time that is left."""
    backends = {name: layer.backend.name for name, layer in sparse_layers(run.model).items()}
    run.tracker.add(
        ConsoleSink(
            console,
            total_steps=config.train.steps,
            start_step=run.state.step,
            log_interval=config.train.log_interval,
        )
    )
    trackers = add_trackers(config, run)
    run.tracker.add(Prediction(console, run, lambda: predict(config, tokenizer, backends)))
    run.tracker.add(TimeEstimate(console, total_steps=config.train.steps, start_step=run.state.step))
    return trackers


def announce(console: Console, config: Config, run: Run, source: str, backends: Backends) -> None:
    """Say what is about to happen."""
    layers = sparse_layers(run.model)
    if layers:
        print_layers(console, layers)
    for line in [*explain_backends(config, layers, run.device, backends), *remarks(config)]:
        console.print(line, soft_wrap=True)
    for line in model_remarks(config, run.model, run.topology.targets):
        console.print(line, soft_wrap=True)
        log.info("%s", line)
    active, dense = count_parameters(run.model)
    settings, n_processes = run.settings, run.processes.size
    tokens = settings.total_steps * settings.tokens_per_step
    lines = [
        f"parameters  {active:,} active of {dense:,} ({active / dense:.1%})",
        f"training    {settings.total_steps:,} steps x {settings.tokens_per_step:,} tokens = {tokens:,} tokens, "
        f"{settings.precision} on {run.device}" + (f", {n_processes} processes" if n_processes > 1 else ""),
        rates_line(config, run.optimizer),
        f"data        {source}",
        f"run folder  {run.folder}",
    ]
    if not run.fresh:
        lines.append(f"resumed     at step {run.state.step:,}")
    elif config.model.init_from is not None:
        lines[1:1] = beginning(config)
    for line in lines:
        console.print(line, soft_wrap=True)
        log.info("%s", line)


def close(console: Console, run: Run, reason: str, trackers: Sequence[Sheltered]) -> None:
    """The closing summary, where everything is, and what to type next."""
    print_run_summary(console, run.folder)
    steps, total_steps = run.state.step, run.settings.total_steps
    finished = reason == "finished"
    after = next_lines(run.folder, steps) if finished else stopped_lines(run.folder, reason, steps, total_steps)
    for line in [*where_lines(run.folder), *note_lines(trackers), *after]:
        console.print(line, soft_wrap=True, markup=False)
