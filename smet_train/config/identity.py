"""Which run a configuration belongs to, and the folder where the same command finds it again."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from smet_train.config.fields import matches
from smet_train.config.plain import flatten, to_dict
from smet_train.config.schema import Config

# Settings that do not change what a run computes up to a step, so that a run may go on with other ones: how far it
# goes, how often it reports and saves, what it starts from, on what machine it runs, slow checks.
VOLATILE_KEYS = (
    "plugins",  # where they lie; what of them is used is said by other settings
    "train.steps",
    "train.device",
    "train.processes",
    "train.parallel",
    "train.max_silence_minutes",
    "train.eval_interval",
    "train.log_interval",
    "train.activation_checkpointing",
    "train.fused_backward_step",
    "train.release_freed_memory",
    "train.deterministic",
    "train.max_hours",
    "train.max_bad_steps",
    "train.max_rollbacks",
    "train.max_loss_rise",
    "checkpoint.",
    "tracking.",
    "data.allow_changed_source",
    "data.max_bad_fraction",
    "data.prefetch_batches",
    "data.cache_dir",
    "data.retries",
    "debug.",
)


def lasting_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of ``settings`` (see :func:`to_dict`) without the volatile ones."""
    return {key: value for key, value in flatten(settings).items() if not matches(key, VOLATILE_KEYS)}


def run_identity(config: Config) -> str:
    """Eight hexadecimal digits that are equal for configurations of the same run."""
    return short_hash(lasting_settings(to_dict(config)))


def short_hash(value: Any) -> str:
    """Eight hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def default_run_folder(config: Config, name: str) -> Path:
    """``outputs/<name>-<hash>``, where the same command finds its run again.

    ``checkpoint.resume=never`` gets the first of ``…-2``, ``…-3`` that does not exist, if the first folder does. The
    path of a checkpoint inside one of these folders leads to that folder; another checkpoint's run has a folder of its
    own, so that it does not mix with the run that started from nothing.
    """
    root = Path("outputs")
    folder = root / f"{name}-{run_identity(config)}"
    resume = config.checkpoint.resume
    if resume == "auto":
        return folder
    if resume == "never":
        return fresh_folder(folder.absolute())
    checkpoint = Path(resume).expanduser().resolve()
    for parent in (checkpoint, *checkpoint.parents):
        if parent.parent == root.resolve() and (parent.name + "-").startswith(folder.name + "-"):
            return root / parent.name
    return folder.with_name(f"{folder.name}-from-{short_hash(str(checkpoint))}")


@functools.cache
def fresh_folder(folder: Path) -> Path:
    """``folder``, or the first of ``folder-2``, ``folder-3`` … that does not exist; one answer in one process.

    The answer must not change when it is asked for again after the folder has been made.
    """
    number, fresh = 1, folder
    while fresh.exists():
        number += 1
        fresh = folder.with_name(f"{folder.name}-{number}")
    return fresh
