"""Bytes of a file on a disk or behind a URL, decompressed by its name's ending, from a byte offset on."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from smet_train.data.remote import RemoteFile, is_url

CHUNK_BYTES = 1 << 18


class Damaged(ValueError):
    """A file's content is broken: cut short, or not what its name says."""


def _open_zip(raw: Any) -> Any:
    archive = zipfile.ZipFile(raw)
    return archive.open(archive.namelist()[0])


def _open_arrow(raw: Any, codec: str) -> Any:
    import pyarrow  # not for those who only look at a file's beginning

    return pyarrow.CompressedInputStream(raw, codec)


_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".lzma": lzma.LZMAFile,
    ".zst": lambda raw: _open_arrow(raw, "zstd"),
    ".lz4": lambda raw: _open_arrow(raw, "lz4"),
    ".zip": _open_zip,
}
COMPRESSED = tuple(_DECOMPRESSORS)


def open_raw(name: str) -> Any:
    """A binary file of ``name`` as it is stored; seekable.

    Raises:
        OSError: if it is missing, unreadable or unreachable.
    """
    return io.BufferedReader(RemoteFile(name), CHUNK_BYTES) if is_url(name) else open(name, "rb")


def read_chunks(name: str, offset: int = 0) -> Iterator[bytes]:
    """The content of ``name`` from byte ``offset`` of what it decompresses to.

    Uncompressed files are entered at the offset. Compressed ones are decompressed from their beginning by the same
    calls whatever the offset, so that where a damaged one breaks off doesn't depend on where reading began.

    Raises:
        Damaged: if it can't be decompressed (further); all that comes before was given.
        OSError: if it can't be read.
    """
    with closing(open_raw(name)) as raw:
        ending = next((ending for ending in COMPRESSED if name.partition("?")[0].endswith(ending)), None)
        if ending is None:
            raw.seek(offset)
            while chunk := raw.read(CHUNK_BYTES):
                yield chunk
            return
        with _broken_told():
            content = _DECOMPRESSORS[ending](raw)
        read = getattr(content, "read1", None) or content.read  # what there is, before an error that comes later
        position = 0
        while chunk := _read(read):
            position += len(chunk)
            if position > offset:
                yield chunk[max(0, len(chunk) - (position - offset)) :]


def _read(read: Callable[[int], bytes]) -> bytes:
    with _broken_told():
        return read(CHUNK_BYTES)


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
            raise Damaged(f"its compressed content is damaged ({error})") from error
