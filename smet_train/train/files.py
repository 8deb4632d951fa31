"""Every write of a checkpoint to disk goes through here: write beside, flush, rename into place.

A folder is published by one rename after all its files and their directory entries are on disk, so that a crash at any
moment leaves either the old state or the new one, never a mixture under a final name.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

_WORKING = ".writing-"
_DELETING = ".deleting-"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_working_folder(target: Path) -> Path:
    """An empty folder beside ``target`` to write into before :func:`publish`."""
    folder = target.parent / f"{_WORKING}{target.name}"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with ``tensors``, flushed to disk."""
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    _flush(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    return load_file(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())


def publish(working: Path, target: Path) -> None:
    """Give ``working`` its final name ``target``; a folder that has that name already is replaced."""
    _flush(working)
    remove_folder(target)
    working.rename(target)
    _flush(target.parent)


def remove_folder(target: Path) -> None:
    """Delete a folder; it loses its final name first, so that a crash leaves nothing half-deleted under it."""
    if target.exists():
        doomed = target.parent / f"{_DELETING}{target.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        target.rename(doomed)
        shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a crash left half-written or half-deleted in ``folder``."""
    for path in folder.glob(".*"):
        if path.name.startswith((_WORKING, _DELETING)):
            shutil.rmtree(path, ignore_errors=True)
