"""A folder that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from smet_train.config.new_folder import check_empty
from smet_train.errors import SmetError
from smet_train.train import files

REMEDY = "give another folder with --out"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name ``target`` at the end; after a failure nothing is left of it.

    Raises:
        ConfigError: if ``target`` holds something already or can't be made.
        SmetError: if something can't be written.
    """
    check_empty(target, REMEDY)
    target = target.resolve()
    made = [path for path in target.parents if not path.exists()]
    working = target.parent / f".writing-{target.name}"
    try:
        working = files.new_working_folder(target)
        yield working
        for path in working.rglob("*"):
            files.disk.sync(path)
        files.disk.sync(working)
        files.disk.rename(working, target)  # fails if somebody has put something there meanwhile
        files.disk.sync(target.parent)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what is told
            files.remove_folder(working)
            for path in made:
                path.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise SmetError(
                f"{target} can't be written: {_what(error)}; make room or {REMEDY}", exit_status=1
            ) from error
        raise


def _what(error: OSError | SafetensorError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
