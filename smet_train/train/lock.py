"""One process to a run folder, by a lock that dies with its holder."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smet_train import opening
from smet_train.errors import CheckpointError

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_PATIENCE_S = 2.0  # for a holder that has the lock but has not yet written who it is
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

_held: set[int] = set()  # descriptors of the locks that this process holds


def _let_go_in_child() -> None:
    # A lock lives as long as any copy of its descriptor; a child that outlives us must not keep it.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def run_folder_lock(folder: Path, setting: str = "hydra.run.dir") -> Iterator[None]:
    """Hold ``folder/.lock`` while the block runs. The kernel drops the lock when the process ends, however it ends.

    The folder is made if it is not there. Programs that this process starts and processes that it forks don't hold the
    lock. On a file system without locks the block runs all the same, after a warning.

    Args:
        setting: by which another folder is chosen.

    Raises:
        CheckpointError: if another process holds it, with its id; if the folder can't be written.
    """
    path = folder / LOCK_NAME
    try:
        descriptor = _acquire(path, setting)
        _held.add(descriptor)
        _write_down_holder(descriptor)
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be written ({error.strerror}); make room or permission there, or choose another folder with "
            f"{setting}=...",
            exit_status=1 if error.errno in _FULL else 2,
        ) from error
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # a forked child that leaves the block has let go already
            _release(descriptor)


def _write_down_holder(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}".encode())
    except OSError:
        _release(descriptor)
        raise


def _release(descriptor: int) -> None:
    with suppress(OSError):  # the name of one who has ended would mislead; without a lock it misleads nobody
        os.ftruncate(descriptor, 0)
    _held.discard(descriptor)
    os.close(descriptor)


def _acquire(path: Path, setting: str) -> int:
    """A descriptor of ``path`` that holds its lock; OSError if the file can't be opened."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = opening.open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 300).decode(errors="replace")
            os.close(descriptor)
            if _is_alive(holder) or time.monotonic() > deadline_s:
                raise _held_by(holder, path.parent, setting) from None
            # Either just ended, or just begun and not yet written down.
            time.sleep(0.01)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(descriptor)
                raise
            log.warning(
                "the file system of %s has no locks (%s): see to it that no second process trains in this folder",
                path.parent, error.strerror,
            )  # fmt: skip
            return descriptor
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # removed, or replaced by another's, between opening and locking


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether ``path`` names the file that was opened."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _is_alive(holder: str) -> bool:
    """Whether ``holder``, "<pid> <host>", can be the one who has the lock now; of other hosts nothing is known."""
    pid, _, host = holder.partition(" ")
    if not pid.isdecimal():
        return False
    if host not in ("", socket.gethostname()):
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _held_by(holder: str, folder: Path, setting: str) -> CheckpointError:
    pid, _, host = holder.partition(" ")
    if not _is_alive(holder):
        who = "another process"
    else:
        who = f"another process (pid {pid}{'' if host in ('', socket.gethostname()) else f' on {host}'})"
    return CheckpointError(
        f"{who} is training in {folder}; wait for it, stop it, or choose another folder with {setting}=..."
    )
