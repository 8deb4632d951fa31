"""The embedded corpus: the Python source files of the interpreter's own standard library."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smet_train.errors import DataError

# Tests and encodings are mostly tables, pydoc_data is documentation; the rest is not on every machine.
_LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}


@dataclass(frozen=True, slots=True)
class PythonFiles:
    """Paths in a fixed, mixed order, and the size of all."""

    paths: tuple[str, ...]
    size_bytes: int


# A whole file fills many training windows, and batches of one file teach little.
_PIECE_CHARACTERS = 2000
_LONGEST_PIECE_CHARACTERS = 4000


def split_source(text: str) -> Iterator[str]:
    """Pieces of a Python file: from 2000 characters on cut after a blank line, from 4000 on after any line.

    Joined they are ``text`` again; the last may be short.
    """
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= (_PIECE_CHARACTERS if line.isspace() else _LONGEST_PIECE_CHARACTERS):
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def find_python_files(root: Path | None = None) -> PythonFiles:
    """The UTF-8 ``.py`` files under ``root`` (default: the standard library), in the order of their names' hashes.

    That order mixes the packages, so that the first documents of the stream, which train the tokenizer and fill the
    validation windows, are a fair sample.

    Raises:
        DataError: if there is none, as in an interpreter that ships without its source.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    relative = sorted(_walk(root, ""), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    paths, size_bytes = [], 0
    for name in relative:
        content = (root / name).read_bytes()
        if content and _is_utf8(content):
            paths.append(str(root / name))
            size_bytes += len(content)
    if not paths:
        raise DataError(
            f"data.source=python_source: {root} holds no .py file; this interpreter ships without its library's "
            "source. Write data.source=text data.files=[...] instead"
        )
    return PythonFiles(tuple(paths), size_bytes)


def _walk(root: Path, prefix: str) -> Iterator[str]:
    for entry in os.scandir(root / prefix):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _LEFT_OUT:
                yield from _walk(root, f"{prefix}{entry.name}/")
        # _sysconfigdata_* is written by the build and differs between machines.
        elif entry.name.endswith(".py") and not entry.name.startswith("_sysconfigdata"):
            yield prefix + entry.name


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
