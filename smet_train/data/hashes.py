"""Hashes of files' contents, remembered by size and times so that a second start reads nothing."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from smet_train.data import cache

log = logging.getLogger(__name__)

# Sources above this are known by blocks of each file: reading all of them would take the first hour of a run.
SAMPLED_FROM_BYTES = 32 << 30
_SAMPLE_BLOCKS = 64
_SAMPLE_BLOCK_BYTES = 1 << 18
_CHUNK_BYTES = 1 << 20
_THREADS = 4
_TOLD_FROM_BYTES = 1 << 30
# A file written this short a time ago may be written again within the same tick of its clock.
_SETTLED_NS = 2_000_000_000


def content_hashes(paths: list[str], *, sampled: bool, cache_dir: Path | None) -> list[str]:
    """XXH3 (hex) of each file: of its whole content, or of its size and 64 blocks of 256 KiB spread over it.

    Raises:
        OSError: if a file can't be read.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    found: dict[str, str] = {}
    for folder, members in by_folder.items():
        found.update(_of_folder(folder, members, sampled, cache_dir))
    return [found[path] for path in paths]


def _of_folder(folder: str, paths: list[str], sampled: bool, cache_dir: Path | None) -> dict[str, str]:
    store = cache_dir and cache_dir / "hashes" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"
    known = _load(store) if store else {}
    stamps = {path: [*_stamp(path), sampled] for path in paths}
    found = {path: known[path][1] for path in paths if path in known and known[path][0] == stamps[path]}
    fresh = [path for path in paths if path not in found]
    if not fresh:
        return found
    _tell(sum(stamps[path][0] for path in fresh), len(fresh), sampled)
    with ThreadPoolExecutor(_THREADS) as pool:
        found.update(zip(fresh, pool.map(_sample if sampled else _whole, fresh), strict=True))
    if store:
        settled = {path: [stamps[path], found[path]] for path in fresh if _settled(path, stamps[path])}
        text = json.dumps({**known, **settled})
        cache.store(store, lambda part: part.write_text(text, encoding="utf-8"))
    return found


def _tell(n_bytes: int, n_files: int, sampled: bool) -> None:
    if n_bytes >= _TOLD_FROM_BYTES and not sampled:
        log.info("data: reading %d files (%.1f GB) once, to know them again", n_files, n_bytes / 1e9)


def _load(store: Path) -> dict[str, Any]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: it is made anew
        return {}
    return known if isinstance(known, dict) else {}


def _stamp(path: str) -> list[int]:
    """What changes when a file is written; the time of its last change can't be set back as that of its content can."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _settled(path: str, before: list[Any]) -> bool:
    """Whether the file stayed as it was while it was hashed, and is old enough to be known by its times: they are not
    of this moment. Times to come are of another clock, a file server's for instance, and as good as past ones."""
    now = _stamp(path)
    clock = time.time_ns()
    return now == before[: len(now)] and all(abs(clock - changed) > _SETTLED_NS for changed in now[1:3])


def _whole(path: str) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sample(path: str) -> str:
    size = os.path.getsize(path)
    digest = xxhash.xxh3_64(str(size).encode())
    last = max(0, size - _SAMPLE_BLOCK_BYTES)
    with open(path, "rb") as file:
        for offset in _spread(last):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BLOCK_BYTES))
    return digest.hexdigest()


def _spread(last: int) -> Iterable[int]:
    """Offsets from 0 to ``last``, both included."""
    return sorted({last * block // (_SAMPLE_BLOCKS - 1) for block in range(_SAMPLE_BLOCKS)})
