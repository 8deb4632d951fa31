"""Local files and URLs of a source: globs expanded, heads checked."""

import codecs
import glob
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from smet_train.data.opened import COMPRESSED, Damaged, read_chunks
from smet_train.data.patterns import absolute_pattern
from smet_train.data.remote import is_url, quoted_url
from smet_train.errors import DataError

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
_NAMED = 3  # files in an error about many


def expand(patterns: Sequence[str]) -> list[str]:
    """Absolute paths and URLs behind ``patterns``: each glob sorted, duplicates dropped, the patterns' order kept.

    Of several names of one file (links) the first is kept.

    Raises:
        DataError: if a pattern matches no file or a link to what isn't there, or is no URL though it begins like one.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys([quoted_url(pattern)] if is_url(pattern) else _expand_local(pattern)))
    return _each_once(list(found))


def _expand_local(pattern: str) -> list[str]:
    path = absolute_pattern(pattern)
    if os.path.isdir(path):
        raise DataError(f"data.files: {pattern!r} is a folder; write its files, for example '{pattern.rstrip('/')}/*'")
    # A file whose own name holds * or [ ] is meant literally.
    found = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
    dangling = [name for name in found if not os.path.exists(name)]
    if dangling:
        more = f" and {len(dangling) - _NAMED} more" if len(dangling) > _NAMED else ""
        raise DataError(
            f"data.files={[pattern]}: {len(dangling)} of {len(found)} files are links to what is not there: "
            f"{', '.join(dangling[:_NAMED])}{more}; fetch their content (git annex get, dvc pull, git lfs pull, or "
            "the download again), or remove the links"
        )
    matches = list(filter(os.path.isfile, found))
    if not matches:
        raise DataError(
            f"data.files={[pattern]} matches no file, seen from {os.getcwd()}; write paths, globs "
            "('corpus/**/*.txt') or http(s) URLs that exist"
        )
    return matches


def _each_once(names: list[str]) -> list[str]:
    """``names`` without those that are further names of a file before them."""
    seen: set[tuple[int, int]] = set()
    kept = []
    for name in names:
        if not is_url(name):
            status = os.stat(name)
            key = status.st_dev, status.st_ino
            if status.st_ino and key in seen:
                continue
            seen.add(key)
        kept.append(name)
    if len(kept) < len(names):
        log.warning(
            "data: left out %d files of %d that are links to others of them", len(names) - len(kept), len(names)
        )
    return kept


def readable_files(names: Iterable[str], check_head: Callable[[str, bytes], None] | None) -> list[str]:
    """``names``, if not all of them are empty; the head of every local file checked by ``check_head(name, head)``.

    Raises:
        DataError: if a file can't be read, if its head is damaged or wrong (with ``check_head`` alone), or if all
            files are empty.
    """
    names = list(names)
    empty = 0
    for name in names:
        if is_url(name):
            continue
        head = read_head(name) if check_head else _first_byte(name)
        empty += not head
        if head and check_head:
            check_head(name, head)
    if empty == len(names):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(f"data.files: {names[0]}{more}: the file is empty, there is nothing to train on")
    if empty:
        log.warning("data: left out %d empty files of %d", empty, len(names))
    return names


def _first_byte(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1)
    except OSError as error:
        raise DataError(f"data.files: {path} can't be read: {error}") from error


def read_head(path: str) -> bytes:
    """The first 64 KiB of a local file, decompressed by its name's ending.

    Raises:
        DataError: if it can't be read or decompressed.
    """
    if not _first_byte(path):
        return b""
    head = b""
    try:
        for chunk in read_chunks(path):
            head += chunk
            if len(head) >= HEAD_BYTES:
                break
    except (Damaged, OSError) as error:
        raise DataError(f"data.files: {path} can't be read: {error}; mend it, or write data.on_bad=skip") from error
    return head[:HEAD_BYTES]


def check_text_head(name: str, head: bytes) -> None:
    """Raises DataError if ``head`` is not the beginning of UTF-8 text."""
    if b"\0" in head:
        raise DataError(
            f"data.files: {name} line {_line(head, head.index(0))}: it is not text but holds a NUL byte. Is it binary, "
            f"UTF-16, or compressed without the usual ending ({', '.join(COMPRESSED)})? Mend it, or write "
            "data.on_bad=skip"
        )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.files: {name} line {_line(head, error.start)}: it is not UTF-8 text ({error.reason}); convert it, "
            "or write data.on_bad=skip"
        ) from None


def _line(head: bytes, offset: int) -> int:
    return head.count(b"\n", 0, offset) + 1


def check_parquet_head(name: str, head: bytes) -> None:
    """Raises DataError if ``head`` is not the beginning of a Parquet file."""
    if head.startswith(b"PARE"):
        raise DataError(
            f"data.files: {name} is an encrypted Parquet file, which can't be read; decrypt it, or write "
            "data.on_bad=skip"
        )
    if not head.startswith(b"PAR1"):
        raise DataError(
            f"data.files: {name} is not a Parquet file (it doesn't begin with PAR1); mend it, or write data.on_bad=skip"
        )


def describe_files(names: Sequence[str]) -> str:
    """For a person: "3 files, 1.2 MB, first corpus/a.txt"."""
    local_bytes = sum(os.path.getsize(name) for name in names if not is_url(name))
    remote = sum(map(is_url, names))
    parts = [f"{len(names)} file{'s' if len(names) > 1 else ''}"]
    if local_bytes:
        parts.append(human_bytes(local_bytes))
    if remote:
        parts.append(f"{remote} of them over http")
    return ", ".join(parts) + f", first {names[0] if is_url(names[0]) else Path(names[0]).name}"


def human_bytes(n_bytes: int) -> str:
    """``n_bytes`` in decimal units: "11.1 MB"."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
