"""The folder that a run will write: looked at before, and taken away again if the run never began."""

import os
from contextlib import suppress
from pathlib import Path

from smet_train import opening
from smet_train.errors import ConfigError, SmetError
from smet_train.train.lock import LOCK_NAME, run_folder_lock

_TRACES = {LOCK_NAME, "train.log"}  # what is there before a run has done anything


_RUN_REMEDY = "choose another one with hydra.run.dir=... or, for a sweep, hydra.sweep.dir=..."


def check_writable(folder: Path, remedy: str = _RUN_REMEDY) -> None:
    """Raises ConfigError if ``folder`` can't be made, or not be written; makes nothing."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be made ({error.strerror}); {remedy}") from error
    if not there.is_dir():
        raise ConfigError(f"the folder {folder} can't be made: {there} is a file; {remedy}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"the folder {folder} can't be written: {there} is read-only here; {remedy}")


def check_own(folder: Path, follow_link: bool) -> None:
    """Look whether all that a run adds to in ``folder`` lies there.

    Args:
        follow_link: whether ``checkpoints`` may be a link, as ``checkpoint.follow_link`` says.

    Raises:
        ConfigError: if something is a link, a pipe or a device: the run would write elsewhere.
    """
    linked = (opening.CHECKPOINTS,) if follow_link else ()
    stray = opening.first_stray(folder, linked)
    if stray is None:
        return
    name = Path(stray.filename).name
    ask = "write checkpoint.follow_link=true if it is yours, or " if name == opening.CHECKPOINTS else ""
    raise ConfigError(f"{stray.filename} is not the run's own: {stray.strerror}; {ask}move it away, or {_RUN_REMEDY}")


def check_empty(folder: Path, remedy: str) -> None:
    """Raises ConfigError if ``folder`` holds something, is a file, or can't be written; makes nothing."""
    check_writable(folder, remedy)
    try:
        found = next(folder.iterdir(), None) if folder.is_dir() else None
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be read ({error.strerror}); {remedy}") from error
    if found is not None:
        raise ConfigError(f"the folder {folder} is not empty, it holds {found.name}; empty it, or {remedy}")


class NewFolder:
    """Remembers which part of ``folder``'s path is not there yet; None is a folder that nobody makes."""

    def __init__(self, folder: Path | None) -> None:
        self._new = [] if folder is None else [path for path in (folder, *folder.parents) if not path.exists()]

    def remove_if_unused(self) -> None:
        """Remove what is new if it holds no more than the log of a run that never began, and nobody else's run."""
        if not self._new:
            return
        folder = self._new[0]
        with suppress(OSError, SmetError):
            if set(os.listdir(folder)) <= _TRACES:
                with run_folder_lock(folder):
                    for name in set(os.listdir(folder)) & _TRACES:
                        (folder / name).unlink()
        for path in self._new:
            with suppress(OSError):
                path.rmdir()
