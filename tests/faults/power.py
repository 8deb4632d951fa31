"""A disk that remembers every call, so that what a crash of the process or of the machine leaves can be built again."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from smet_train.train.files import Disk


@dataclass(frozen=True)
class Call:
    """One file-system call: ``write``, ``sync``, ``rename``, ``make``, ``unlink`` or ``rmdir``."""

    kind: str
    path: Path
    target: Path | None = None
    content: bytes = b""


class RecordingDisk(Disk):
    """Does every call, and notes those below ``root``: how deep the tests' own folder lies adds no trial. Flushes are
    noted alone, because the machine that loses power is made up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[Call] = []

    def _note(self, call: Call) -> None:
        if call.path.is_relative_to(self.root):
            self.calls.append(call)

    def write(self, path: Path, parts: Iterator[memoryview | bytes]) -> None:
        content = b"".join(bytes(part) for part in parts)
        self._note(Call("write", path, content=content))
        super().write(path, iter([content]))

    def sync(self, path: Path) -> None:
        self._note(Call("sync", path))
        path.stat()

    def rename(self, path: Path, target: Path) -> None:
        self._note(Call("rename", path, target))
        super().rename(path, target)

    def make_folder(self, path: Path) -> None:
        self._note(Call("make", path))
        super().make_folder(path)

    def remove_file(self, path: Path) -> None:
        self._note(Call("unlink", path))
        super().remove_file(path)

    def remove_empty_folder(self, path: Path) -> None:
        self._note(Call("rmdir", path))
        super().remove_empty_folder(path)


@dataclass
class _File:
    content: bytes
    flushed: bool = False


@dataclass
class _Folder:
    entries: dict[str, "_File | _Folder"] = field(default_factory=dict)
    on_disk: dict[str, "_File | _Folder"] = field(default_factory=dict)  # entries at the last flush
    pending: list[tuple[str, "_File | _Folder | None"]] = field(default_factory=list)  # changes since

    def put(self, name: str, node: "_File | _Folder | None") -> None:
        self.pending.append((name, node))
        _apply(self.entries, name, node)


def _apply(entries: dict[str, "_File | _Folder"], name: str, node: "_File | _Folder | None") -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


class Machine:
    """The state of a file system under ``root``, in memory and on disk, after some calls.

    After a flush of a file its content is safe; after a flush of a folder the names in it are. Without one, a machine
    that loses power keeps any part of what came since: contents whole, empty, cut or zeroed; names all, none or some,
    in their order or not. A rename is one change: both names or neither.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = _Folder()

    def do(self, call: Call) -> None:
        if call.kind == "sync":
            self._sync(call.path)
            return
        parent, name = self._folder(call.path.parent), call.path.name
        if call.kind == "write":
            parent.put(name, _File(call.content))
        elif call.kind == "make":
            parent.put(name, _Folder())
        elif call.kind in ("unlink", "rmdir"):
            parent.put(name, None)
        else:
            assert call.target is not None
            assert call.target.parent == call.path.parent
            node = parent.entries[name]
            # one entry of the journal: see crash()
            parent.pending.append((f"{name}\0{call.target.name}", node))
            _rename(parent.entries, name, call.target.name, node)

    def _sync(self, path: Path) -> None:
        node = self.top if path == self.root else self._folder(path.parent).entries[path.name]
        if isinstance(node, _File):
            node.flushed = True
        else:
            node.on_disk, node.pending = dict(node.entries), []

    def _folder(self, path: Path) -> _Folder:
        node: _File | _Folder = self.top
        for name in path.relative_to(self.root).parts:
            assert isinstance(node, _Folder)
            node = node.entries[name]
        assert isinstance(node, _Folder)
        return node

    def build(self, target: Path, power_lost: str | None, draw: random.Random) -> None:
        """Make ``target`` what a process finds that starts afterwards. ``power_lost``: None if only the process died;
        "all" or "none" of the changes that were not flushed are kept, or "some"."""
        _build(self.top, target, power_lost, draw)


def _rename(entries: dict[str, "_File | _Folder"], name: str, target: str, node: "_File | _Folder") -> None:
    if entries.get(name) is node:
        del entries[name]
        entries[target] = node


def _build(folder: _Folder, target: Path, power_lost: str | None, draw: random.Random) -> None:
    target.mkdir(parents=True, exist_ok=True)
    entries = folder.entries
    if power_lost is not None:
        entries = dict(folder.on_disk)
        for name, node in folder.pending:
            if power_lost == "none" or (power_lost == "some" and draw.random() < 0.5):
                continue
            old, _, new = name.partition("\0")
            if new and node is not None:
                _rename(entries, old, new, node)
            else:
                _apply(entries, name, node)
    for name, node in entries.items():
        if isinstance(node, _Folder):
            _build(node, target / name, power_lost, draw)
        else:
            (target / name).write_bytes(_content(node, power_lost, draw))


def _content(file: _File, power_lost: str | None, draw: random.Random) -> bytes:
    if file.flushed or power_lost is None:
        return file.content
    cut = draw.randrange(len(file.content) + 1)
    return draw.choice([b"", file.content[:cut], bytes(len(file.content)), file.content])
