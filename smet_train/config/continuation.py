"""Going on with a run under other settings: which may change, which may not, and what is written down of it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smet_train import __version__, opening
from smet_train.config.fields import leaves, matches, spell
from smet_train.config.identity import VOLATILE_KEYS
from smet_train.config.paths import absolute
from smet_train.config.plain import flatten, plain, to_dict
from smet_train.config.schema import Config, DropSchedule, Grow, LrScheduleName
from smet_train.errors import CheckpointError, DataError

# Settings that a run keeps from its first step to its last: what is trained, on what, by which rule, in which order.
FIXED_KEYS = (
    "seed",
    "method",
    "model.",
    "data.source",
    "data.name",
    "data.subset",
    "data.split",
    "data.text_field",
    "data.text_unit",
    "data.sequence_tokens",
    "data.shuffle_documents",
    "data.validation_fraction",
    "data.on_bad",
    "data.max_document_bytes",
    "data.tokenizer.",
    "sparsity.enabled",
    "sparsity.density",
    "sparsity.block_size",
    "sparsity.allocation",
    "sparsity.densities",
    "sparsity.include",
    "sparsity.exclude",
    "sparsity.init",
    "topology.",
    "optimizer.",
    "train.batch_size",
    "train.micro_batch_size",
    "train.precision",
    "train.eval_windows",
)
# Settings that may be other ones when a run goes on. Files may lie elsewhere: the position in the data has a hash of
# their content. The backend computes the same layers on the machine that there is.
CHANGEABLE_KEYS = (*VOLATILE_KEYS, "data.files", "sparsity.backend")
# A checkpoint of another run may go on under another optimizer or schedule, but not as another model.
SAME_MODEL_KEYS = (
    "model.",
    "sparsity.density",
    "sparsity.densities",
    "sparsity.block_size",
    "sparsity.include",
    "sparsity.exclude",
    "sparsity.enabled",
    "data.sequence_tokens",
    "data.tokenizer.",
    "train.precision",
)
Change = tuple[str, Any, Any]
RESUMES_NAME = "resumes.jsonl"


def changed_settings(saved: dict[str, Any], wanted: dict[str, Any]) -> list[Change]:
    """(key, old value, new value) of the settings that differ; paths are compared as seen from the root.

    A setting that the version which wrote ``saved`` did not have counts as its default: settings are added so that
    their default is what was before.
    """
    defaults = {leaf.key: plain(leaf.default) for leaf in leaves(Config())}
    before, after = defaults | flatten(saved), defaults | flatten(wanted)
    return [
        (key, before[key], after.get(key))
        for key in before
        if absolute(key, before[key]) != absolute(key, after.get(key))
    ]


def check_continuation(saved: Mapping[str, Any], config: Config, checkpoint: Path, run_folder: Path) -> list[Change]:
    """What is other than when ``checkpoint``, with the plain values ``saved``, was written.

    Raises:
        CheckpointError: if a setting that may not change has changed, or if the run is past ``train.steps``.
    """
    own = checkpoint.parent.parent.resolve() == run_folder.resolve()
    changes = changed_settings(saved["config"], to_dict(config))
    refuse_changes(changes, checkpoint, own)
    if config.train.steps < saved["step"]:
        raise CheckpointError(
            f"train.steps={config.train.steps}, but {checkpoint} has done {saved['step']} steps already; write "
            f"train.steps={saved['step']} or more, or go back with checkpoint.resume={checkpoint.parent}/step_XXXXXXXX"
        )
    _refuse_unpruned(saved, config, checkpoint)
    return changes


def _refuse_unpruned(saved: Mapping[str, Any], config: Config, checkpoint: Path) -> None:
    """Raises CheckpointError if a run that prunes gradually had not come to its density in ``checkpoint``, and has no
    update left in which it could."""
    topology = config.topology
    if not topology.enabled or topology.grow is not Grow.nothing or _is_pruned(saved):
        return
    first = max(saved["step"], saved["topology"]["last_step"] + 1)
    due = math.ceil(first / topology.interval) * topology.interval
    if due >= topology.stop_at * config.train.steps:
        raise CheckpointError(
            f"train.steps={config.train.steps} leaves no update in which {checkpoint} could be pruned to its density "
            f"any more; write train.steps={math.floor(due / topology.stop_at) + 1} or more"
        )


def _is_pruned(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds no weights that are still to be pruned."""
    before = saved["config"]["topology"]
    if before["grow"] != Grow.nothing.name:
        return True
    due = saved["topology"]["last_step"] + before["interval"]
    done = due >= before["stop_at"] * saved["config"]["train"]["steps"]  # an older checkpoint tells no more
    return bool(saved["topology"].get("pruned", done))


def refuse_changes(changes: Sequence[Change], where: Path, own: bool) -> None:
    """Raises CheckpointError if a setting has changed that may not; ``where`` has the old ones.

    Args:
        own: whether the run goes on; else another run begins from its checkpoint ``where``.
    """
    refused = [
        change
        for change in changes
        if (not matches(change[0], CHANGEABLE_KEYS) if own else matches(change[0], SAME_MODEL_KEYS))
    ]
    if refused:
        key, old, new = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        begin = "" if matches(key, SAME_MODEL_KEYS) else " and checkpoint.resume= this one's folder"
        raise CheckpointError(
            f"{where} was trained with {key}={spell(old)}, now {key}={spell(new)}{more}; set it back, or start another "
            f"run with hydra.run.dir=FOLDER{begin}"
        )


def changes_text(changes: Sequence[Change], config: Config) -> list[str]:
    """Lines about ``changes`` for the terminal, with what a changed length does to the steps to come."""
    lines = [f"changed     {key}={spell(new)} (was {spell(old)})" for key, old, new in changes]
    if not any(key == "train.steps" for key, _, _ in changes):
        return lines
    optimizer, topology = config.optimizer, config.topology
    follow = []
    if optimizer.schedule is not LrScheduleName.constant or optimizer.warmup_fraction:
        follow.append("the learning rate")
    moves = config.sparsity.enabled and topology.enabled
    if moves and (topology.drop_schedule is not DropSchedule.constant or topology.stop_at < 1):
        follow.append("the topology updates")
    if follow:
        verb = "follows" if follow == ["the learning rate"] else "follow"
        lines.append(f"schedules   {' and '.join(follow)} from here on {verb} a run of {config.train.steps:,} steps")
    return lines


def record_resume(run_folder: Path, checkpoint: Path, step: int, changes: Sequence[Change]) -> None:
    """Add a line to ``resumes.jsonl``: when, by which version, from where, and what was changed, old and new value.

    Raises:
        CheckpointError: if it can't be written.
    """
    inside = checkpoint.resolve().is_relative_to(run_folder.resolve())
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "from": str(checkpoint.resolve().relative_to(run_folder.resolve()) if inside else checkpoint.resolve()),
        "step": step,
        "changed": {key: [old, new] for key, old, new in changes},
    }
    path = run_folder / RESUMES_NAME
    try:
        with opening.append_to(path) as file:
            file.write((json.dumps(line) + "\n").encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be written ({error.strerror}); make room or permission and start the same command again",
            exit_status=1,
        ) from error


def about_changed_files(error: DataError, changes: Sequence[Change]) -> DataError:
    """``error``, that the data are other ones, with the files that were given then and now."""
    for key, old, new in changes:
        if key == "data.files":
            return DataError(
                f"{key}={spell(new)} instead of {key}={spell(old)}: {error}", exit_status=error.exit_status
            )
    return error
