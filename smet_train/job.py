"""One training run from a validated configuration to the closing summary."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from smet_train.analysis.layers import print_layers
from smet_train.analysis.planning import plan_run
from smet_train.analysis.summary import format_bytes, print_summary, run_summary
from smet_train.build import build_data, build_device, build_run, remarks, run_header
from smet_train.config.identity import config_differences
from smet_train.config.plain import save_config, to_dict
from smet_train.config.schema import Config
from smet_train.errors import CheckpointError
from smet_train.sparse.ledger import count_parameters, sparse_layers
from smet_train.sparse_model import Backends, Vocabulary, explain_backends
from smet_train.tracking.console import ConsoleSink, open_console
from smet_train.tracking.resources import memory_use
from smet_train.tracking.wandb_sink import open_wandb
from smet_train.train import files
from smet_train.train.checkpoint import load_checkpoint, load_plain
from smet_train.train.heap import release_freed_memory
from smet_train.train.lock import run_folder_lock
from smet_train.train.loop import train
from smet_train.train.resume import choose_checkpoint, is_finished
from smet_train.train.run import Run
from smet_train.train.signals import StopRequest
from smet_train.train.state import restore

log = logging.getLogger(__name__)

# A checkpoint of another run may go on under another optimizer or schedule, but not as another model.
_SAME_MODEL = (
    "model.",
    "sparsity.density",
    "sparsity.block_size",
    "sparsity.include",
    "sparsity.exclude",
    "sparsity.enabled",
    "data.sequence",
    "data.tokenizer",
    "train.precision",
)


def run_training(config: Config, run_folder: Path, console: Console | None = None) -> int:
    """Train in ``run_folder``, or say that it is finished; returns the exit status, 0.

    Raises:
        SmetError: with a message for the user, for everything that is wrong with settings, data or checkpoints.
    """
    console = console or open_console()
    if config.train.release_freed_memory:
        release_freed_memory()
    run_folder.mkdir(parents=True, exist_ok=True)
    with StopRequest() as stop, run_folder_lock(run_folder):
        files.remove_leftovers(run_folder / "checkpoints")
        checkpoint = choose_checkpoint(config.checkpoint.resume, run_folder)
        if checkpoint is not None:
            check_same_run(load_plain(checkpoint)["config"], to_dict(config), checkpoint, run_folder)
        if is_finished(run_folder, checkpoint, config.train.steps):
            tell_finished(console, config, run_folder)
        else:
            _train(config, run_folder, checkpoint, stop, console)
    return 0


def check_same_run(saved: dict[str, Any], wanted: dict[str, Any], checkpoint: Path, run_folder: Path) -> None:
    """Refuse to go on from a checkpoint under settings that it was not trained with, naming both values."""
    own = checkpoint.parent.parent.resolve() == run_folder.resolve()
    changed = [
        (key, old, new) for key, old, new in config_differences(saved, wanted) if own or key.startswith(_SAME_MODEL)
    ]
    if changed:
        key, old, new = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{checkpoint} was trained with {key}={json.dumps(old)}, now {key}={json.dumps(new)}{more}; set it back, "
            "or start another run with hydra.run.dir=... or checkpoint.resume=never"
        )


def tell_finished(console: Console, config: Config, run_folder: Path) -> None:
    print_summary(console, run_summary(run_folder))
    console.print(
        f"This run is finished at step {config.train.steps}: {run_folder}\n"
        f"To extend it, type the same command with more steps, for instance train.steps={2 * config.train.steps}; "
        "to start over in a fresh folder, add checkpoint.resume=never.",
        soft_wrap=True,
    )


def _train(config: Config, run_folder: Path, checkpoint: Path | None, stop: StopRequest, console: Console) -> None:
    build_device(config)  # a device that is not there is said before minutes go into data
    tokenizer_file = find_tokenizer(run_folder, checkpoint)
    console.print("preparing the data …" if tokenizer_file else "preparing the data and its tokenizer …")
    data = build_data(config, tokenizer_file)
    try:
        data.tokenizer.save(run_folder / "tokenizer.json")
        save_config(config, run_folder / "config.yaml")
        start_rss_bytes = memory_use(torch.device("cpu"))["rss_bytes"]
        backends = chosen_backends(checkpoint)
        run = build_run(config, run_folder, data, stop, backends)
        run.start_rss_bytes, run.planned = start_rss_bytes, plan_bytes(config, data.tokenizer, backends)
        start(run, config, checkpoint)
        announce(console, config, run, data.source.description, backends)
        add_displays(config, run, console)
        reason = train(run)
    finally:
        data.batches.close()
    run.tracker.close()
    close(console, run, reason)


def chosen_backends(checkpoint: Path | None) -> Backends:
    """What ``sparsity.backend=auto`` chose for each layer when the run of ``checkpoint`` began; empty if it did not.

    The user's cache may have gone since, and another choice would have other rounding.
    """
    saved = {} if checkpoint is None else load_plain(checkpoint)
    chosen = saved.get("config", {}).get("sparsity", {}).get("backend") == "auto"
    return saved.get("backends", {}) if chosen else {}


def plan_bytes(config: Config, tokenizer: Vocabulary, backends: Backends) -> dict[str, int]:
    """Predicted bytes by kind, and of the peak of all tensors; empty for a model whose shapes depend on numbers."""
    try:
        footprint = plan_run(config, vocabulary=tokenizer, backends=backends).footprint
    except RuntimeError as error:  # what fake tensors raise
        log.info("memory can't be predicted for this model: %s", error)
        return {}
    return {**{row.kind: row.bytes for row in footprint.rows}, "peak": footprint.peak_bytes}


def find_tokenizer(run_folder: Path, checkpoint: Path | None) -> Path | None:
    """The tokenizer that a checkpoint was trained with: it lies in the checkpoint's run folder."""
    folder = run_folder if checkpoint is None else checkpoint.parent.parent
    path = folder / "tokenizer.json"
    return path if checkpoint is not None and path.is_file() else None


def start(run: Run, config: Config, checkpoint: Path | None) -> None:
    """Put the run at its first step or where the checkpoint was taken."""
    if checkpoint is None:
        run.metrics.truncate(0)  # what a run that died before its first checkpoint has left
        run.tracker.emit(run_header(config, run))
        return
    own = checkpoint.parent.resolve() == run.checkpoints.resolve()
    restore(run, load_checkpoint(checkpoint), same_folder=own)
    if not own:
        run.tracker.emit(run_header(config, run))
    log.info("resumed from %s", checkpoint)


def add_displays(config: Config, run: Run, console: Console) -> None:
    """The progress display, and wandb if asked for."""
    run.tracker.add(
        ConsoleSink(
            console,
            total_steps=config.train.steps,
            start_step=run.state.step,
            log_interval=config.train.log_interval,
        )
    )
    if config.tracking.wandb.name == "disabled":
        return
    wandb = open_wandb(
        mode=config.tracking.wandb.name,
        project=config.tracking.wandb_project,
        run_folder=run.folder,
        name=run.folder.name,
        config=run.config,
    )
    if wandb is not None:
        run.tracker.add(wandb)


def announce(console: Console, config: Config, run: Run, source: str, backends: Backends) -> None:
    """Say what is about to happen."""
    layers = sparse_layers(run.model)
    if layers:
        print_layers(console, layers)
    for line in [*explain_backends(config, layers, run.device, backends), *remarks(config)]:
        console.print(line, soft_wrap=True)
    active, dense = count_parameters(run.model)
    settings = run.settings
    tokens = settings.total_steps * settings.tokens_per_step
    lines = [
        f"parameters  {active:,} active of {dense:,} ({active / dense:.1%})",
        f"training    {settings.total_steps:,} steps x {settings.tokens_per_step:,} tokens = {tokens:,} tokens, "
        f"{settings.precision} on {run.device}",
        f"data        {source}",
        f"run folder  {run.folder}",
    ]
    if run.planned:
        peak = format_bytes(run.planned["peak"])
        lines.insert(2, f"memory      {peak} in tensors at most, as predicted; torch and data come on top")
    if not run.fresh:
        lines.append(f"resumed     at step {run.state.step:,}")
    for line in lines:
        console.print(line, soft_wrap=True)
        log.info("%s", line)


def close(console: Console, run: Run, reason: str) -> None:
    """The closing summary, and what to type next."""
    print_summary(console, run_summary(run.folder))
    console.print(f"run folder  {run.folder}", soft_wrap=True)
    if reason != "finished":
        console.print(
            f"{reason}: stopped at step {run.state.step:,} of {run.settings.total_steps:,} with a checkpoint; "
            "type the same command to go on.",
            soft_wrap=True,
        )
