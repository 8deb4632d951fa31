"""What a source's files were when a position was taken, and which of them have changed since."""

import base64
import hashlib
import json
import os
import posixpath
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from smet_train import opening
from smet_train.data.hashes import SAMPLED_FROM_BYTES, content_hashes
from smet_train.data.remote import is_url, remote_identity
from smet_train.data.retry import retried
from smet_train.errors import DataError

_TAG_DIGITS = 6  # hexadecimal ones of a file's hash that name the file that differs; the digest finds that one does
_HEAD_REQUESTS = 16
_COMPARED, _WAYS = 32, 8  # names by which a common folder is found again, and guesses of it that are tried


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file as it was: name from the files' common folder, bytes (-1 if unknown), hash of its content."""

    name: str
    size: int
    hash: str


@dataclass(frozen=True)
class Manifest:
    """The files of a source in order; ``sampled`` if their hashes are of blocks, because they are so large."""

    files: tuple[FileIdentity, ...]
    sampled: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        content = [[file.name, file.size, file.hash] for file in self.files]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def packed(self) -> dict[str, Any]:
        """JSON-able: the digest, and about 15 bytes a file by which to name those that change."""
        names, sizes = [file.name for file in self.files], [file.size for file in self.files]
        listed = json.dumps([names, sizes, [file.hash[:_TAG_DIGITS] for file in self.files]])
        content = base64.b85encode(zlib.compress(listed.encode(), 9)).decode()
        return {"digest": self.digest, "sampled": self.sampled, "files": content}

    def named_like(self, saved: dict[str, Any]) -> "Manifest":
        """The same files by the names that they had when ``saved`` was packed, if other files have come or gone."""
        if saved["digest"] == self.digest:
            return self
        names = seen_from_where(_unpacked(saved)[0], [file.name for file in self.files])
        return replace(self, files=tuple(replace(f, name=name) for f, name in zip(self.files, names, strict=True)))


def common_names(paths: Sequence[str]) -> list[str]:
    """Each path from the local ones' common folder, so that a corpus may be moved; URLs as they are."""
    local = [path for path in paths if not is_url(path)]
    root = os.path.commonpath([os.path.dirname(path) for path in local]) if local else ""
    return [path if is_url(path) else os.path.relpath(path, root).replace(os.sep, "/") for path in paths]


def seen_from_where(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """``names`` seen from the folder that ``known`` are seen from, where both have files in common; else as they are.

    What files have in common is another folder when files from elsewhere come, or go: ``p.txt`` is ``2023/p.txt`` when
    ``2024/q.txt`` comes, which from the old folder is ``../2024/q.txt``.
    """
    same_base: dict[str, list[str]] = {}
    for name in names:
        same_base.setdefault(posixpath.basename(name), []).append(name)
    moves: Counter[tuple[str, str]] = Counter()
    for old in known[:: max(1, len(known) // _COMPARED)]:
        for new in same_base.get(posixpath.basename(old), [])[:_COMPARED]:
            if new.endswith(f"/{old}"):
                moves["up", new.removesuffix(old)] += 1
            elif old.endswith(f"/{new}"):
                moves["down", old.removesuffix(new)] += 1
    ways = [list(names), *(_moved(names, *move) for move, _ in moves.most_common(_WAYS))]
    wanted = set(known)
    return max(ways, key=lambda way: sum(name in wanted for name in way))


def _moved(names: Sequence[str], where: str, folder: str) -> list[str]:
    def move(name: str) -> str:
        if is_url(name):
            return name
        return posixpath.relpath(name, folder) if where == "up" else posixpath.normpath(folder + name)

    return [move(name) for name in names]


def take_manifest(paths: Sequence[str], cache_dir: Path | None, retries: int, sampled: bool | None = None) -> Manifest:
    """The manifest of files and URLs as they are now.

    Args:
        sampled: None: if they are larger than 32 GiB together.

    Raises:
        DataError: if a URL has nothing behind it, or can't be reached.
        OSError: if a file can't be read.
    """
    local = [path for path in paths if not is_url(path)]
    sizes = {path: os.path.getsize(path) for path in local}
    if sampled is None:
        sampled = sum(sizes.values()) > SAMPLED_FROM_BYTES
    hashes = dict(zip(local, content_hashes(local, sampled=sampled, cache_dir=cache_dir), strict=True))
    urls = [path for path in paths if is_url(path)]
    with ThreadPoolExecutor(_HEAD_REQUESTS) as pool:
        told = dict(zip(urls, pool.map(lambda url: _remote(url, retries), urls), strict=True))
    files = [
        FileIdentity(name, *(told[path] if is_url(path) else (sizes[path], hashes[path])))
        for name, path in zip(common_names(paths), paths, strict=True)
    ]
    return Manifest(tuple(files), sampled)


def _remote(url: str, retries: int) -> tuple[int, str]:
    size, tag = retried(lambda: remote_identity(url), url, retries)
    return -1 if size is None else size, hashlib.sha256(tag.encode()).hexdigest()[:16] if tag else ""


def find_change(saved: dict[str, Any], now: Manifest, take: Callable[[bool], Manifest]) -> str | None:
    """What has changed since ``saved`` was packed, naming a file; None if nothing has.

    Args:
        now: by the names of ``saved``, see :meth:`Manifest.named_like`.
        take: the manifest as it is now, sampled or not; asked for where ``saved`` was taken the other way.
    """
    if saved["sampled"] != now.sampled:
        now = take(saved["sampled"]).named_like(saved)
    if saved["digest"] == now.digest:
        return None
    names, sizes, tags = _unpacked(saved)
    before = [FileIdentity(*entry) for entry in zip(names, sizes, tags, strict=True)]
    after = [FileIdentity(file.name, file.size, file.hash[:_TAG_DIGITS]) for file in now.files]
    changes = _changes(before, after)
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    return changes[0] + more


def _unpacked(saved: dict[str, Any]) -> tuple[list[str], list[int], list[str]]:
    """Names, bytes and tags of the files that were packed."""
    try:
        reader = zlib.decompressobj()
        listed = reader.decompress(base64.b85decode(saved["files"]), opening.LARGEST_JSON)
        if not reader.eof:
            raise ValueError(f"it is cut short, or longer than {opening.LARGEST_JSON:,} bytes")
        names, sizes, tags = opening.parse_json(listed)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise DataError(
            f"the list of files in the checkpoint can't be read ({opening.what(error)}); resume from another one"
        ) from error
    return names, sizes, tags


def _changes(before: list[FileIdentity], after: list[FileIdentity]) -> list[str]:
    old, new = ({file.name: file for file in files} for files in (before, after))
    left = {(file.size, file.hash): file.name for file in after if file.name not in old}
    changes = []
    for name, was in old.items():
        if name not in new:
            renamed = left.pop((was.size, was.hash), None)
            changes.append(f"{name} is now called {renamed}" if renamed else f"{name} is missing")
        elif new[name].size != was.size:
            changes.append(f"{name} had {was.size} bytes, now it has {new[name].size}")
        elif new[name].hash != was.hash:
            changes.append(f"{name} has other content of the same size")
    changes += [f"{name} is new" for name in left.values()]
    if not changes:
        moved = next((a.name for b, a in zip(before, after, strict=True) if a.name != b.name), None)
        changes = [f"{moved} stands elsewhere in the order" if moved else f"{after[0].name} or another one has changed"]
    return changes
