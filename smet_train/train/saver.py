"""Writes the checkpoints of a run, in the loop's thread or in the background."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from smet_train.errors import CheckpointError, SmetError
from smet_train.train.checkpoint import Keep, checkpoint_path, latest_checkpoint, save_checkpoint
from smet_train.train.processes import ALONE, Processes
from smet_train.train.snapshot import Snapshot

log = logging.getLogger(__name__)


class Saver:
    """The writer of ``folder``: the leading process, or all of them if what they save is split over them. Every method
    but :meth:`close` is called by all.

    In the background, a save copies the tensors to memory of its own and returns; the next save waits until it is
    written. That memory, as much as is saved, is kept from save to save: to have the system hand it out anew would take
    longer than the copy. What goes wrong meanwhile is raised by whatever is called next.

    Args:
        keep: which checkpoints survive.
        asynchronous: write in the background.
        warn: a save that fails is a warning, unless it is the last.
    """

    def __init__(
        self,
        folder: Path,
        keep: Keep,
        *,
        asynchronous: bool = False,
        warn: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.folder = folder
        self._processes = processes
        self._keep = keep
        self._asynchronous = asynchronous
        self.warn = warn
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._copies: dict[str, dict[str, Tensor]] = {}

    def has(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is there."""

        def look() -> bool:
            self._wait()
            return checkpoint_path(self.folder, step).is_dir()

        return self._processes.told(look)

    def newest(self) -> Path | None:
        """The checkpoint of the highest step, or None."""

        def look() -> Path | None:
            self._wait()
            return latest_checkpoint(self.folder)

        return self._processes.told(look)

    def save(self, step: int, snapshot: Snapshot, *, last: bool = False) -> None:
        """Write ``snapshot``, or begin to; the ``last`` one is there when this returns, and so is one that the error of
        the save before makes the last.

        Raises:
            CheckpointError: in all processes, if this save or the one before could not be written. If that is to be a
                warning, only if this is the last.
        """
        if snapshot.is_split:
            self._save(step, snapshot, self._processes, last=last)
        else:
            self._processes.told(lambda: self._save(step, snapshot, ALONE, last=last))

    def _save(self, step: int, snapshot: Snapshot, writers: Processes, *, last: bool) -> None:
        earlier = self._told_earlier(last=last)
        # Of any writer: they must all write this one here, or all in the background.
        ends = last or writers.highest(int(earlier is not None)) > 0
        if self._asynchronous and not ends:
            self._copies = {part: self._copied(part, held) for part, held in snapshot.held.items()}
            copied = Snapshot(snapshot.tensors, json.loads(json.dumps(snapshot.plain)), self._copies)
            self._thread = threading.Thread(
                target=self._write, args=(step, copied, writers.aside()), name="smet-train saver"
            )
            self._thread.start()
        else:
            self._write(step, snapshot, writers)
            self._settle(must=last)
            if earlier is not None:
                raise earlier

    def _copied(self, part: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of ``held`` on the CPU, in the memory of the copies before where they are alike."""
        before = self._copies.get(part, {})
        copies: dict[str, Tensor] = {}
        for name, tensor in held.items():
            copy = before.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            copies[name] = copy.copy_(tensor.detach())
        return copies

    def _told_earlier(self, *, last: bool) -> Exception | None:
        """Wait for what is being written. If the disk refused it, a warning where there may be one: the last state may
        fit nevertheless. Any other error is returned: the run ends by it, when this state is written."""
        self._wait()
        error, self._error = self._error, None
        if not isinstance(error, CheckpointError) or not (last or self.warn):
            return error
        if not error.told:
            what = "the last one is written nevertheless" if last else "checkpoint.on_error=warn: training goes on"
            log.warning("%s (%s)", error, what)
        return None

    def _settle(self, *, must: bool) -> None:
        """Say or raise what went wrong with what was written."""
        error, self._error = self._error, None
        if error is None:
            return
        if must or not self.warn or not isinstance(error, CheckpointError):
            raise error
        if not error.told:
            log.warning("%s (checkpoint.on_error=warn: training goes on)", error)

    def close(self) -> None:
        """Wait for what is being written. What went wrong with it is a warning: the run ends by something else."""
        self._wait()
        error, self._error = self._error, None
        if error is not None and not (isinstance(error, SmetError) and error.told):
            log.warning("%s", error)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, snapshot: Snapshot, writers: Processes) -> None:
        try:
            save_checkpoint(self.folder, step, snapshot, self._keep, writers)
        except Exception as error:  # of a thread that nobody would hear of otherwise
            self._error = error
