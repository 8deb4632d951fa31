"""Writes the checkpoints of a run, in the loop's thread or in the background."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from smet_train.errors import CheckpointError
from smet_train.train.checkpoint import Keep, Snapshot, checkpoint_path, latest_checkpoint, save_checkpoint

log = logging.getLogger(__name__)


class Saver:
    """One writer of ``folder``.

    In the background, a save copies the tensors to memory of its own and returns; the next save waits until it is
    written. That memory, as much as is saved, is kept from save to save: to have the system hand it out anew would take
    longer than the copy. What goes wrong meanwhile is raised by whatever is called next.

    Args:
        keep: which checkpoints survive.
        asynchronous: write in the background.
        warn: a save that fails is a warning, unless it is the last.
    """

    def __init__(self, folder: Path, keep: Keep, *, asynchronous: bool = False, warn: bool = False) -> None:
        self.folder = folder
        self._keep = keep
        self._asynchronous = asynchronous
        self._warn = warn
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._copies: dict[str, dict[str, Tensor]] = {}

    def has(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is there."""
        self._wait()
        return checkpoint_path(self.folder, step).is_dir()

    def newest(self) -> Path | None:
        """The checkpoint of the highest step, or None."""
        self._wait()
        return latest_checkpoint(self.folder)

    def save(self, step: int, snapshot: Snapshot, *, last: bool = False) -> None:
        """Write ``snapshot``, or begin to; the ``last`` one is there when this returns.

        Raises:
            CheckpointError: if this save or the one before could not be written. If that is to be a warning, only if
                this is the last.
        """
        self._settle()
        if self._asynchronous and not last:
            self._copies = {part: self._copied(part, held) for part, held in snapshot.tensors.items()}
            copied = Snapshot(self._copies, json.loads(json.dumps(snapshot.plain)))
            self._thread = threading.Thread(target=self._write, args=(step, copied), name="smet-train saver")
            self._thread.start()
        else:
            self._write(step, snapshot)
            self._settle(must=last)

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

    def _settle(self, *, must: bool = False) -> None:
        """Wait for what is being written; say or raise what went wrong with it."""
        self._wait()
        error, self._error = self._error, None
        if error is None:
            return
        if must or not self._warn or not isinstance(error, CheckpointError):
            raise error
        log.warning("%s (checkpoint.on_error=warn: training goes on)", error)

    def close(self) -> None:
        """Wait for what is being written. What went wrong with it is a warning: the run ends by something else."""
        self._wait()
        error, self._error = self._error, None
        if error is not None:
            log.warning("%s", error)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, snapshot: Snapshot) -> None:
        try:
            save_checkpoint(self.folder, step, snapshot, self._keep)
        except Exception as error:  # of a thread that nobody would hear of otherwise
            self._error = error
