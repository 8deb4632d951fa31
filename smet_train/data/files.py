"""Local files and URLs of a source: globs expanded, heads checked, contents fingerprinted."""

import codecs
import glob
import hashlib
import json
import locale
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import fsspec
import xxhash

from smet_train.data import cache
from smet_train.errors import DataError

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
_READ_BYTES = 1 << 24
_KNOWN = "checksums.json"
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")


def is_url(name: str) -> bool:
    """Whether ``name`` is fetched over http(s) instead of from a disk."""
    return name.startswith(("http://", "https://"))


def expand(patterns: Sequence[str]) -> list[str]:
    """Absolute paths and URLs behind ``patterns``: each glob sorted, duplicates dropped, the patterns' order kept.

    Raises:
        DataError: if a pattern matches no file.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys([pattern] if is_url(pattern) else _expand_local(pattern)))
    return list(found)


def _expand_local(pattern: str) -> list[str]:
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isdir(path):
        raise DataError(f"data.files: {pattern!r} is a folder; write its files, for example '{pattern.rstrip('/')}/*'")
    # A file whose own name holds * or [ ] is meant literally.
    matches = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not matches:
        raise DataError(
            f"data.files={[pattern]} matches no file, seen from {os.getcwd()}; write paths, globs "
            "('corpus/**/*.txt') or http(s) URLs that exist"
        )
    return matches


def readable_files(names: Iterable[str], check_head: Callable[[str, bytes], None]) -> list[str]:
    """``names`` without the empty files, the head of every local file checked by ``check_head(name, head)``.

    Raises:
        DataError: if a file can't be read or decompressed, if its head is wrong, or if all files are empty.
    """
    names = list(names)
    kept = []
    for name in names:
        head = None if is_url(name) else read_head(name)
        if head == b"":
            continue
        if head is not None:
            check_head(name, head)
        kept.append(name)
    if not kept:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(f"data.files: {names[0]}{more}: the file is empty, there is nothing to train on")
    if len(kept) < len(names):
        log.warning("data: left out %d empty files of %d", len(names) - len(kept), len(names))
    return kept


def read_head(path: str) -> bytes:
    """The first 64 KiB of a local file, decompressed by its name's ending."""
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            return bytes(file.read(HEAD_BYTES))
    except EOFError:
        # A compressed file that was cut short, or one of no bytes at all.
        if os.path.getsize(path) == 0:
            return b""
        raise DataError(f"data.files: {path} is cut short: its compressed content ends too early") from None
    except Exception as error:  # each compression library has exceptions of its own
        raise DataError(f"data.files: {path} can't be read: {error}") from error


def check_binary(name: str, head: bytes) -> None:
    """Raises DataError if ``head`` is no text at all."""
    if b"\0" in head:
        raise DataError(
            f"data.files: {name} is not text: a NUL byte lies in its first 64 KiB. Is it binary, UTF-16, or compressed "
            f"without the usual ending ({', '.join(_COMPRESSED)})?"
        )


def check_text_head(name: str, head: bytes) -> None:
    """Raises DataError if ``head`` is not the beginning of UTF-8 text."""
    check_binary(name, head)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.files: {name} is not UTF-8 text (byte {error.start}: {error.reason}); convert it, or write "
            "data.on_bad=skip to leave out what can't be read"
        ) from None


def check_parquet_head(name: str, head: bytes) -> None:
    """Raises DataError if ``head`` is not the beginning of a Parquet file."""
    if not head.startswith(b"PAR1"):
        raise DataError(f"data.files: {name} is not a Parquet file (it doesn't begin with PAR1)")


def check_locale(names: Iterable[str]) -> None:
    """Raises DataError where compressed or remote text would be decoded by the locale instead of as UTF-8.

    ``datasets`` passes an encoding on to plain local files only.
    """
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name != "utf-8" and any(is_url(n) or n.endswith(_COMPRESSED) for n in names):
        raise DataError(
            f"compressed and remote text is decoded by the locale, which is {encoding} here; set PYTHONUTF8=1 and try "
            "again"
        )


def contents(names: Sequence[str], cache_dir: Path | None) -> dict[str, str]:
    """What each file holds: its size and the XXH3 checksum of all of it, by its name seen from the files' common folder
    (so that a corpus may be moved); of a URL nothing but its name.

    Checksums are kept in ``cache_dir`` for files whose path, size and time of change are the same.
    """
    local = [name for name in names if not is_url(name)]
    root = os.path.commonpath([os.path.dirname(name) for name in local]) if local else ""
    known = _known(cache_dir)
    found: dict[str, str] = {}
    for name in names:
        if is_url(name):
            found[name] = ""
            continue
        status = os.stat(name)
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        if known.get(name, "").rpartition(" ")[0] != stamp:
            known[name] = f"{stamp} {_checksum(name)}"
        found[os.path.relpath(name, root)] = f"{status.st_size} bytes {known[name].rpartition(' ')[2]}"
    if cache_dir is not None:
        cache.store(cache_dir / _KNOWN, lambda part: part.write_text(json.dumps(known), encoding="utf-8"))
    return found


def _known(cache_dir: Path | None) -> dict[str, str]:
    try:
        known = {} if cache_dir is None else json.loads((cache_dir / _KNOWN).read_bytes())
        return {str(name): str(stamp) for name, stamp in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("data: the cache of checksums is damaged (%s); making it again", error)
        return {}


def _checksum(path: str) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def fingerprint(held: Mapping[str, str], settings: str) -> str:
    """SHA-256 over ``settings`` and the :func:`contents` of files, in their order."""
    return hashlib.sha256(json.dumps([settings, list(held.items())]).encode()).hexdigest()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What has become of files since ``before``, a few words for each."""
    told = [f"{name} is missing" for name in before if name not in now]
    told += [f"{name} has changed" for name in before if name in now and now[name] != before[name]]
    told += [f"{name} is new" for name in now if name not in before]
    if not told and list(before) != list(now):
        moved = next(name for name, other in zip(now, before, strict=True) if name != other)
        told.append(f"{moved} comes in another place")
    return told


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
