"""One process to a run folder, by a lock that dies with its holder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smet_train.errors import CheckpointError


@contextmanager
def run_folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock`` while the block runs. The kernel drops the lock when the process ends, however it ends.

    Raises:
        CheckpointError: if another process holds it; the message says which.
    """
    path = folder / ".lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise CheckpointError(
                f"another process (pid {holder}) is training in {folder}; wait for it, stop it, or choose another "
                "folder with hydra.run.dir=..."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
