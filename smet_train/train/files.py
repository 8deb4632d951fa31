"""Every file-system call of a save goes through here: write beside, flush, rename into place.

A folder is published by one rename after all its files and their directory entries are on disk, so that a crash at
any moment, of the process or of the machine, leaves either the old state or the new one under a final name, never a
mixture.
"""

import errno
import io
import json
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from smet_train import opening
from smet_train.sparse.coding import CODED, code, read_decoded

log = logging.getLogger(__name__)

_WORKING = ".writing-"
_DELETING = ".deleting-"
_READ_BYTES = 1 << 24
_FOLDERS_NEED_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP)  # what network file systems without it answer
# The names that the safetensors format has for what a checkpoint holds.
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.uint16: "U16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


class Disk:
    """The file system. Tests put one in its place that fails, or that forgets what was not flushed."""

    def create(self, path: Path) -> io.FileIO:
        """A new file to write to, not yet flushed."""
        return path.open("xb", buffering=0)

    def write(self, path: Path, parts: Iterator[memoryview | bytes]) -> None:
        """A new file of ``parts``, not yet flushed."""
        with self.create(path) as file:
            for part in parts:
                write_all(file, part)

    def sync(self, path: Path) -> None:
        """Flush a file, or the entries of a folder where the file system can."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _FOLDERS_NEED_NO_FLUSH or not path.is_dir():
                raise
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Rename a file or folder; both lie in one file system."""
        os.rename(path, target)

    def make_folder(self, path: Path) -> None:
        """Make a folder that must not exist."""
        path.mkdir()

    def remove_file(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def remove_empty_folder(self, path: Path) -> None:
        """Remove a folder that must be empty."""
        path.rmdir()


disk = Disk()


@dataclass(frozen=True, slots=True)
class Written:
    """What a file must be: its size and its XXH3 checksum of 128 bits, in hexadecimal digits."""

    n_bytes: int
    checksum: str


def write_all(file: io.FileIO, part: memoryview | bytes) -> None:
    """Write ``part``, of which a disk may take less than all at once."""
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]


def write(path: Path, parts: Iterator[memoryview | bytes]) -> Written:
    """Write a new file and flush it; its checksum is taken from memory, on the way."""
    n_bytes, digest = 0, xxhash.xxh3_128()

    def counted() -> Iterator[memoryview | bytes]:
        nonlocal n_bytes
        for part in parts:
            n_bytes += len(part)
            digest.update(part)
            yield part

    disk.write(path, counted())
    disk.sync(path)
    return Written(n_bytes, digest.hexdigest())


def write_json(path: Path, content: Mapping[str, Any]) -> Written:
    """A new JSON file, flushed."""
    return write(path, iter([json.dumps(content).encode()]))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, coded: bool = False) -> Written:
    """A new safetensors file, flushed. The library's own writer copies all tensors first; this one copies none that is
    contiguous and on the CPU.

    Args:
        coded: hold as bytes what :mod:`smet_train.sparse.coding` shortens; the file's metadata has its shape and type.
    """
    return write(path, _safetensors(tensors, coded))


def _safetensors(tensors: Mapping[str, Tensor], coded: bool) -> Iterator[memoryview | bytes]:
    header: dict[str, Any] = {}
    shapes_of_coded: dict[str, Any] = {}
    contents: list[Tensor | bytes] = []
    end = 0
    # widest values first, so that each begins at a multiple of its size
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        content = code(tensor) if coded else None
        dtype, shape, n_bytes = _DTYPES[tensor.dtype], list(tensor.shape), tensor.numel() * tensor.element_size()
        if content is not None:
            shapes_of_coded[name] = [dtype, shape]
            dtype, shape, n_bytes = "U8", [len(content)], len(content)
        start, end = end, end + n_bytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        contents.append(tensor if content is None else content)
    if shapes_of_coded:
        header["__metadata__"] = {CODED: json.dumps(shapes_of_coded)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    yield struct.pack("<Q", len(text)) + text
    for item in contents:
        if isinstance(item, bytes):
            yield item
        elif item.numel():
            flat = item.detach().cpu().contiguous().view(-1)
            yield memoryview(flat.view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that :func:`write_tensors` wrote, on the CPU.

    Raises:
        ValueError: if coded bytes can't be read.
    """
    opening.require_regular(path)
    with safe_open(path, framework="pt") as file:
        return read_decoded(file, file.keys())


def read_checksum(path: Path) -> Written:
    """What a file is now."""
    n_bytes, digest = 0, xxhash.xxh3_128()
    with opening.regular(path) as file:
        opening.require_solid(file, path)
        while part := file.read(_READ_BYTES):
            n_bytes += len(part)
            digest.update(part)
    return Written(n_bytes, digest.hexdigest())


def replace_text(path: Path, text: str) -> None:
    """Write ``path``, which at any moment is the old file or the new one.

    Raises:
        OSError: if it can't be written; what was written of it is removed as far as possible.
    """
    part = path.with_name(f"{_WORKING}{path.name}")
    with suppress(FileNotFoundError):
        disk.remove_file(part)
    try:
        write(part, iter([text.encode(errors="backslashreplace")]))  # a name in it may not be UTF-8
        disk.rename(part, path)
        disk.sync(path.parent)
    except OSError:
        with suppress(OSError):
            disk.remove_file(part)
        raise


def new_working_folder(target: Path) -> Path:
    """An empty folder beside ``target`` to write into before :func:`publish`."""
    folder = target.parent / f"{_WORKING}{target.name}"
    _remove(folder)
    for parent in reversed(target.parents):
        if not parent.is_dir():
            disk.make_folder(parent)
    if not any(target.parent.iterdir()):
        _flush_names_down_to(target.parent)
    disk.make_folder(folder)
    return folder


def _flush_names_down_to(folder: Path) -> None:
    """Whoever made the folders on the way may not have flushed their names, and without those all below is lost."""
    for parent in folder.absolute().parents:
        with suppress(PermissionError):  # not ours to make, then
            disk.sync(parent)


def publish(working: Path, target: Path) -> None:
    """Give ``working`` its final name ``target``; a folder that has that name already is replaced."""
    disk.sync(working)
    remove_folder(target)
    disk.rename(working, target)
    disk.sync(target.parent)


def remove_folder(target: Path) -> None:
    """Delete a folder with all that is in it; it loses its final name first, so that a crash leaves nothing
    half-deleted under it."""
    if target.exists():
        doomed = target.parent / f"{_DELETING}{target.name}"
        _remove(doomed)
        disk.rename(target, doomed)
        disk.sync(target.parent)
        _remove(doomed)


def set_aside(path: Path, name: str) -> Path:
    """Rename a folder to ``name``, or to the first of ``name-2``, ``name-3`` … that is free; returns its path now."""
    aside, number = path.with_name(name), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{name}-{number}")
    disk.rename(path, aside)
    disk.sync(path.parent)
    return aside


def remove_leftovers(folder: Path) -> None:
    """Delete what a crash left half-written or half-deleted in ``folder``; what can't be deleted is warned of."""
    for path in folder.glob(".*"):
        if path.name.startswith((_WORKING, _DELETING)):
            try:
                _remove(path)
            except OSError as error:
                log.warning("%s is left of an earlier save and can't be deleted: %s", path, error)


def _remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            _remove(entry)
        disk.remove_empty_folder(path)
    elif path.is_symlink() or path.exists():
        disk.remove_file(path)
