"""Events to Weights & Biases, under the same names as in metrics.jsonl: ``train/loss``, ``spike/spike``, ..."""

import importlib
import logging
from pathlib import Path
from typing import Any

from smet_train.tracking.names import FIELDS

log = logging.getLogger(__name__)


class WandbSink:
    """A wandb run, ``mode`` "offline" (files under ``run_folder``, to be synced later) or "online".

    Every event has its own step axis, ``<event>/step``, because events of one step arrive one after the other and a
    spike is reported many steps after the update it belongs to.
    """

    def __init__(self, *, mode: str, project: str, run_folder: Path, name: str, config: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")  # takes seconds: only for those who ask for it
        self._run = wandb.init(
            mode=mode,
            project=project,
            dir=str(run_folder),
            id=name,
            name=name,
            resume="allow",
            reinit="finish_previous",
            config=config,
            settings=wandb.Settings(silent=True),
        )
        for event in FIELDS:
            self._run.define_metric(f"{event}/step")
            self._run.define_metric(f"{event}/*", step_metric=f"{event}/step")

    def emit(self, event: dict[str, Any]) -> None:
        """Log the fields of ``FIELDS`` as ``<event>/<field>``; events without such fields are left out."""
        kind = event["event"]
        if kind not in FIELDS:
            return
        prefix = f"{kind}/{event['source']}_" if "source" in event else f"{kind}/"
        fields = {f"{prefix}{key}": event[key] for key in FIELDS[kind] if event.get(key) is not None}
        self._run.log({**fields, f"{kind}/step": event["step"]})

    def close(self) -> None:
        """Finish the wandb run; in online mode this waits for what is still to be sent."""
        self._run.finish()


def open_wandb(**settings: Any) -> WandbSink | None:
    """A :class:`WandbSink`, or None with a warning if wandb is missing or refuses: a run never fails for it."""
    try:
        return WandbSink(**settings)
    except Exception as error:
        log.warning("tracking.wandb: not available, training goes on without it: %r", error)
        return None
