"""Bytes of a file on a disk or behind a URL, decompressed by its name's ending, from a byte offset on."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from smet_train.data.members import Members
from smet_train.data.remote import RemoteFile, is_url

CHUNK_BYTES = 1 << 18


_HEAD_BYTES = 256
# What version control and hubs leave where a file's content was not fetched.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": "it is a Git LFS pointer, not the file; write git lfs pull there",
    b"/annex/objects/": "it is a git-annex pointer, not the file; write git annex get there",
    b"# xet version ": "it is a Xet pointer, not the file; download the file itself",
}
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL
)
_HTML_ENDINGS = (".html", ".htm", ".xhtml")


class Damaged(ValueError):
    """A file's content is broken: cut short, or not what its name says."""


def _open_zip(raw: Any) -> Any:
    archive = zipfile.ZipFile(raw)
    # What macOS packs beside each file is no file of anyone's.
    files = [entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        raise Damaged(f"it holds {len(files)} files, where one is read; unpack it, or pack each file by itself")
    if files[0].flag_bits & 1:
        raise Damaged("its file is encrypted; unpack it")
    return archive.open(files[0])


def _open_arrow(raw: Any, codec: str) -> Any:
    import pyarrow  # not for those who only look at a file's beginning

    return pyarrow.CompressedInputStream(raw, codec)


_BY_ARROW = {".zst": "zstd", ".lz4": "lz4"}
_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": lambda raw: Members(raw, bz2.BZ2Decompressor, CHUNK_BYTES),
    ".xz": lambda raw: Members(raw, lzma.LZMADecompressor, CHUNK_BYTES, padding=4),
    ".lzma": lambda raw: Members(raw, lzma.LZMADecompressor, CHUNK_BYTES),
    **{ending: partial(_open_arrow, codec=codec) for ending, codec in _BY_ARROW.items()},
    ".zip": _open_zip,
}
COMPRESSED = tuple(_DECOMPRESSORS)


def open_raw(name: str) -> Any:
    """A binary file of ``name`` as it is stored; seekable.

    Raises:
        OSError: if it is missing, unreadable or unreachable.
    """
    return io.BufferedReader(RemoteFile(name), CHUNK_BYTES) if is_url(name) else open(name, "rb")


def stands_for_another(name: str, head: bytes) -> str | None:
    """What the file of ``name``, which begins with ``head``, is in place of its content; None if that is not known."""
    for begin, what in _POINTERS.items():
        if head.startswith(begin):
            return what
    if is_url(name) and _HTML.match(head) and not urlsplit(name).path.lower().endswith(_HTML_ENDINGS):
        return "it is an HTML page, of an error, a login or a list of files perhaps; give the URL of the file itself"
    return None


def check_content(name: str, raw: Any) -> None:
    """Raises Damaged if what ``raw``, a file at its beginning, holds stands for the content of ``name``."""
    told = stands_for_another(name, raw.peek(_HEAD_BYTES)[:_HEAD_BYTES])
    if told is not None:
        raise Damaged(told)


def read_chunks(name: str, offset: int = 0) -> Iterator[bytes]:
    """The content of ``name`` from byte ``offset`` of what it decompresses to.

    Uncompressed files are entered at the offset. Compressed ones are decompressed from their beginning by the same
    calls whatever the offset, so that where a damaged one breaks off doesn't depend on where reading began.

    Raises:
        Damaged: if it can't be decompressed (further); all that comes before was given.
        OSError: if it can't be read.
    """
    with closing(open_raw(name)) as raw:
        ending = _ending(name)
        if offset == 0:
            check_content(name, raw)
        if ending is None:
            raw.seek(offset)
            while chunk := raw.read(CHUNK_BYTES):
                yield chunk
            return
        if not raw.peek(1):  # some formats have nothing shorter than a header; an empty file is empty in all of them
            return
        position = 0
        for chunk in _decompressed(raw, ending):
            position += len(chunk)
            if position > offset:
                yield chunk[max(0, len(chunk) - (position - offset)) :]


def _ending(name: str) -> str | None:
    """The compression that the name tells; a URL's name ends before its query."""
    path = (urlsplit(name).path if is_url(name) else name).lower()
    return next((ending for ending in COMPRESSED if path.endswith(ending)), None)


def _decompressed(raw: Any, ending: str) -> Iterator[bytes]:
    position = 0
    try:
        for chunk in _chunks(raw, ending, CHUNK_BYTES):
            position += len(chunk)
            yield chunk
    except Damaged:
        if ending in _BY_ARROW:
            yield _last_bytes(raw, ending, position)
        raise


def _chunks(raw: Any, ending: str, n_bytes: int) -> Iterator[bytes]:
    with _broken_told():
        content = _DECOMPRESSORS[ending](raw)
    read = getattr(content, "read1", None) or content.read  # what there is, before an error that comes later
    while chunk := _read(read, n_bytes):
        yield chunk


def _read(read: Callable[[int], bytes], n_bytes: int) -> bytes:
    with _broken_told():
        return read(n_bytes)


def _last_bytes(raw: Any, ending: str, position: int) -> bytes:
    """What lies between ``position`` and the damage: pyarrow drops what the read that fails has decompressed, so it is
    read again, a byte at a time."""
    raw.seek(0)
    content = _DECOMPRESSORS[ending](raw)
    for _ in range(position // CHUNK_BYTES):
        content.read(CHUNK_BYTES)
    content.read(position % CHUNK_BYTES)
    last = bytearray()
    with suppress(Damaged):
        while byte := _read(content.read, 1):
            last += byte
    return bytes(last)


# What else the libraries raise: ValueError is pyarrow's, IndexError comes of a zip file that holds nothing,
# NotImplementedError of exotic ones.
_BROKEN = (
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    ValueError,
    IndexError,
    NotImplementedError,
)


# What the libraries say of content that may be sound and is beyond them, in lower case, and what to tell.
_BEYOND = {
    # Arrow reads windows as large as zstd itself does without being asked.
    "requires too much memory": "it is compressed with --long (a window above 128 MiB), which can't be read; unpack it "
    "(zstd -d --long=31), and compress it without --long",
    "dictionary mismatch": "it is compressed with a dictionary (zstd -D), which can't be read; unpack it with that "
    "dictionary, and compress it without one",
    "compression method": "it is compressed by a method that can't be read; unpack it, or compress it by the usual one",
}


def _told_of(error: BaseException | None) -> str:
    """What is wrong with content of which a library says ``error``."""
    text = str(error).lower()
    beyond = next((told for sign, told in _BEYOND.items() if sign in text), None)
    return beyond or f"its compressed content is damaged ({error})"


class _broken_told:
    """Turns the exceptions of the compression libraries into Damaged; those of the disk and the network pass."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, EOFError):
            raise Damaged("it is cut short: its compressed content ends too early") from error
        broken = isinstance(error, _BROKEN)
        # bz2 and pyarrow raise OSError for bad content, without the number that the system's errors have.
        bare = type(error) is OSError and error.errno is None
        if broken or bare:
            raise Damaged(_told_of(error)) from error
