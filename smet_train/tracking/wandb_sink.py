"""Events to Weights & Biases, under the same names as in metrics.jsonl: ``train/loss``, ``spike/train_spike``, ..."""

import hashlib
import importlib
import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from smet_train import opening
from smet_train.replacing import replacing
from smet_train.showing import all_shown, without_secrets
from smet_train.tracking.names import metrics, prefix, prefixes
from smet_train.tracking.shelter import CLOSE_S

log = logging.getLogger(__name__)

_LONGEST_NAME = 128  # that wandb's server takes, of a run and of a group
_INIT_S = 20.0
_ABANDON_S = 5.0
_ID_NAME = "run_id.txt"
_LONGEST_ID = 128
_ONLINE = ".online"  # ends the name of an empty file that says that a server has the run of this id
_SPIKE_COLUMNS = (
    "step", "source", "baseline", "peak", "spike", "peak_step", "recovery_steps", "horizon_steps", "beta2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WandbSettings:
    """What a wandb run is called and where it belongs; ``mode`` is "offline" or "online".

    ``identity`` is equal for equal runs and begins the id. ``fresh`` means that the run starts at its first step.
    """

    mode: str
    project: str
    identity: str
    fresh: bool = True
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


class WandbSink:
    """Logs to the wandb run ``run``.

    Each kind of event has a step axis of its own, ``train/step``, ``spike/train_step``: events of one step arrive one
    after the other, and a spike is reported many steps after the update it belongs to. A run that goes on has points
    already: those up to the last step of each axis are not sent again.

    Args:
        wandb: the module.
        note: see :class:`NotedSink`.
    """

    def __init__(self, wandb: Any, run: Any, note: str, resumed: bool) -> None:
        self.note = note
        self._wandb = wandb
        self._run = run
        self._finished = False
        self._spikes: list[list[Any]] = []
        self._sent: dict[str, int] = {}
        for name in prefixes():
            run.define_metric(f"{name}step")
            run.define_metric(f"{name}*", step_metric=f"{name}step")
            if resumed and (step := run.summary.get(f"{name}step")) is not None:
                self._sent[name] = step

    def emit(self, event: dict[str, Any]) -> None:
        """Log the event's metrics; at the end of a run also all spikes as the table ``spike/table``."""
        if event["event"] == "spike":
            self._spikes.append([event.get(column) for column in _SPIKE_COLUMNS])
        if event["event"] == "end":
            self._finished = event["reason"] == "finished"
            if self._spikes:
                self._run.log({"spike/table": self._wandb.Table(columns=list(_SPIKE_COLUMNS), data=self._spikes)})
        values, name = metrics(event), prefix(event)
        if values and event["step"] > self._sent.get(name, -1):
            self._run.log({**values, f"{name}step": event["step"]})

    def attach(self, name: str, files: Iterable[Path]) -> None:
        """Keep ``files`` as an artifact of the run, without secrets of URLs; each time another version of it."""
        artifact = self._wandb.Artifact(f"{name}-{self._run.id}", type=name)
        with tempfile.TemporaryDirectory() as folder:
            for file in files:
                copy = Path(folder) / file.name
                with opening.regular(file) as lines, copy.open("wb") as kept:
                    for line in opening.bounded_lines(lines):
                        kept.write(
                            without_secrets(line.decode(errors="surrogateescape")).encode(errors="surrogateescape")
                        )
                artifact.add_file(str(copy), name=file.name)
            self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finish the wandb run, as a failed one if it is not at its end, and end wandb's own process."""
        try:
            if self._finished:
                self._run.finish()
            else:
                self._run.finish(exit_code=1)
        finally:
            teardown(self._wandb)


def open_wandb(settings: WandbSettings, run_folder: Path, config: dict[str, Any]) -> WandbSink:
    """A run online, or offline if that is asked for or wandb can't be reached, which is told in a warning.

    Raises:
        Exception: of any kind, if wandb is missing or refuses.
    """
    wandb = importlib.import_module("wandb")  # takes a second: only for those who ask for it
    folder = run_folder / "wandb"
    run_id = stored_id(folder, settings.identity, settings.fresh)
    unsent_id = offline_id(folder, run_id)
    offline_note = f"wandb sync {shlex.quote(str(folder))}/offline-run-*-{unsent_id}"
    # Silent also means that no key is asked for on a terminal.
    wandb.setup(wandb.Settings(silent=True))
    if settings.mode == "online" and os.environ.get("WANDB_MODE") != "offline":
        try:
            run = _init(wandb, settings, run_folder, config, mode="online", id=run_id, resume="allow")
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            log.warning(
                "tracking.wandb=online: wandb can't be reached (%s); the run is recorded offline. To send it later: %s",
                reason, offline_note,
            )  # fmt: skip
            teardown(wandb)  # which else holds the id as one in use
            wandb.setup(wandb.Settings(silent=True))
        else:
            (folder / f"{run_id}{_ONLINE}").touch()
            remove_unsent(folder, run_id)
            return WandbSink(wandb, run, str(run.url), resumed=True)
    remove_unsent(folder, unsent_id)
    run = _init(wandb, settings, run_folder, config, mode="offline", id=unsent_id)
    return WandbSink(wandb, run, offline_note, resumed=False)


def _init(wandb: Any, settings: WandbSettings, run_folder: Path, config: dict[str, Any], **how: Any) -> Any:
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group and shortened(settings.group),
        tags=list(settings.tags),
        name=shortened(run_folder.name),
        dir=str(run_folder),
        config=all_shown(config),
        allow_val_change=True,
        reinit="finish_previous",
        # What a run prints is in its own files, and must not pass through another process.
        settings=wandb.Settings(silent=True, console="off", init_timeout=_INIT_S, finish_timeout=CLOSE_S - 10),
        **how,
    )


def shortened(name: str) -> str:
    """``name``, or its beginning and a hash of all of it if it is longer than wandb takes, which is told."""
    if len(name) <= _LONGEST_NAME:
        return name
    short = f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    log.warning("wandb takes names of %d characters at most; %s is called %s there", _LONGEST_NAME, name, short)
    return short


def stored_id(folder: Path, identity: str, fresh: bool) -> str:
    """The id of the wandb run of a run folder, made at its first start and kept in ``folder``.

    A run that was killed before its first checkpoint keeps it too; one that starts afresh as another gets another.
    """
    path = folder / _ID_NAME
    if path.is_file():
        stored = opening.plain_name(opening.read_text(path, _LONGEST_ID).strip())
        if not fresh or stored.startswith(f"{identity}-"):
            return stored
    folder.mkdir(exist_ok=True)
    run_id = f"{identity}-{secrets.token_hex(4)}"
    with replacing(path) as part:
        part.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def offline_id(folder: Path, run_id: str) -> str:
    """``run_id``, or the first of ``run_id-2``, ``run_id-3`` ... that no server has heard of, as far as is known here.

    Offline a run is recorded from its first event on. Sent to a run that a server has already, it would be added to it.
    """
    number, unsent_id = 1, run_id
    while (folder / f"{unsent_id}{_ONLINE}").exists() or any(folder.glob(f"offline-run-*-{unsent_id}/*.synced")):
        number += 1
        unsent_id = f"{run_id}-{number}"
    return unsent_id


def remove_unsent(folder: Path, run_id: str) -> None:
    """Remove what earlier starts recorded of a run and nobody has sent: the present start has it again."""
    for outdated in folder.glob(f"offline-run-*-{run_id}"):
        if not any(outdated.glob("*.synced")):
            shutil.rmtree(outdated)


def teardown(wandb: Any) -> None:
    """End wandb's own process and take back what wandb would do when ours ends."""
    try:
        wandb.teardown()
    except (Exception, SystemExit) as error:
        log.debug("wandb.teardown: %r", error)  # its process was gone


def abandon() -> None:
    """End wandb's own process by force: it may hang, and ours would wait for it at its end."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() == "wandb-core":
                child.kill()
    if "wandb" in sys.modules:
        ending = threading.Thread(target=teardown, args=(sys.modules["wandb"],), daemon=True)
        ending.start()
        ending.join(_ABANDON_S)
