"""What may be read of a folder, and written into it, whoever it comes from.

A run folder, a checkpoint, an exported folder or a config.yaml may come from somebody else. What opens one asks here:

- a name in a file is a plain one: it leads nowhere but into the folder;
- what is read is a regular file, or a link to one; a device, a pipe or a socket is never opened;
- a file has no more bytes than it can need, and is nested no deeper than it can be read;
- what is written is never written through a link.

docs/security.md says what opening each kind of folder may do.
"""

import errno
import functools
import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from smet_train.errors import SmetError

# Bytes that a file of a kind can need: ten times the largest that is known, or more.
LARGEST_SETTINGS = 1 << 20
LARGEST_JSON = 1 << 25
LARGEST_TOKENIZER = 1 << 28
LARGEST_LINE = 1 << 26

_ANY_HOLES, _MOST_HOLES = 1 << 30, 16
_LONGEST_REASON = 300
_DEEPEST_SETTING = 20

# What a run adds to in its folder; a link of such a name would lead elsewhere. Files that are replaced by a rename are
# not among them: a link is replaced then, and what it leads to stays as it is.
WRITTEN = (
    ".lock", "train.log", "console.log", "metrics.jsonl", "incidents.jsonl", "resumes.jsonl", "checkpoints", "inspect",
    "evals", "report", "wandb", "tensorboard", "optuna.db",
)  # fmt: skip
CHECKPOINTS = "checkpoints"

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# What Python raises where a value is not what the code takes it for.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def plain_name(name: Any) -> str:
    """``name``, which names a file of the very folder that it is looked for in.

    Raises:
        ValueError: if it is no text, is empty, leads into another folder, or holds characters that are not shown.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"{str(name)[:80]!r} is no plain file name")
    return name


def regular(path: Path, at_most: int | None = None) -> BinaryIO:
    """The regular file ``path``, or that it links to, open for reading.

    Args:
        at_most: bytes that it may have.

    Raises:
        OSError: if it can't be read, is something else than a file, or is larger.
    """
    _require_regular(path, os.stat(path))  # before it is opened, which would wake a device
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        if at_most is not None and status.st_size > at_most:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, {at_most:,} are the most", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_solid(file: BinaryIO, path: Path) -> None:
    """See that most of a large file is there: one of a few bytes can be a million million long, all of it a hole.

    Raises:
        OSError: if there are more than 1 GiB and 15 times its bytes of holes in it.
    """
    number, size, at, stored = file.fileno(), os.fstat(file.fileno()).st_size, 0, 0
    if size <= _ANY_HOLES:
        return
    with suppress(OSError):  # behind the last byte that is there; file systems without holes say that all is
        while _MOST_HOLES * stored + _ANY_HOLES < size:
            begins = os.lseek(number, at, os.SEEK_DATA)
            at = os.lseek(number, begins, os.SEEK_HOLE)
            stored += at - begins
    os.lseek(number, 0, os.SEEK_SET)
    if _MOST_HOLES * stored + _ANY_HOLES < size:
        raise OSError(errno.EFBIG, f"of its {size:,} bytes no more than {stored:,} are there", str(path))


def require_regular(path: Path) -> None:
    """Raises OSError if ``path`` is not there, or is neither a regular file nor a link to one."""
    _require_regular(path, os.stat(path))


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def read_bytes(path: Path, at_most: int = LARGEST_JSON) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as :func:`regular`; also if it grows past ``at_most`` while it is read.
    """
    with regular(path, at_most) as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"it has more than {at_most:,} bytes", str(path))
    return content


def read_text(path: Path, at_most: int = LARGEST_JSON) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: if it is not UTF-8.
    """
    return read_bytes(path, at_most).decode("utf-8")


def parse_json(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: if it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, at_most: int = LARGEST_JSON) -> Any:
    """What the JSON file ``path`` says.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: as :func:`parse_json`.
    """
    return parse_json(read_bytes(path, at_most))


def read_object(path: Path, at_most: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in the JSON file ``path``.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: as :func:`parse_json`; also if it is no object.
    """
    content = read_json(path, at_most)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def read_settings(path: Path, loader: type = yaml.SafeLoader) -> Any:
    """What the config.yaml ``path`` says. It may have no aliases, by which a few lines become thousands of millions of
    settings: no config.yaml of ours has any.

    Args:
        loader: of the package yaml.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError, yaml.YAMLError: if it is not YAML, is nested too deeply, or has an alias.
    """
    try:
        return yaml.load(read_text(path, LARGEST_SETTINGS), Loader=_without_aliases(loader))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@functools.cache
def _without_aliases(loader: Any) -> Any:
    class Loader(loader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"it has the alias *{self.peek_event().anchor}; write out what it stands for")
            self.depth += 1
            if self.depth > _DEEPEST_SETTING:
                raise yaml.YAMLError("it is nested too deeply")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


def bounded_lines(file: BinaryIO, at_most: int = LARGEST_LINE) -> Iterator[bytes]:
    """The lines of ``file``.

    Raises:
        ValueError: if one is longer than ``at_most`` bytes.
    """
    while line := file.readline(at_most + 1):
        if len(line) > at_most:
            raise ValueError(f"a line of more than {at_most:,} bytes")
        yield line


@contextmanager
def malformed(told: str, error_type: type[SmetError], remedy: str) -> Iterator[None]:
    """Inside, values are taken for what a file of this program says. What Python raises where one is something else is
    told as a mistake of the file.

    Args:
        told: which file.
        error_type: what is raised then.
        remedy: what to do.

    Raises:
        SmetError: of ``error_type``.
    """
    try:
        yield
    except _MALFORMED as error:
        raise error_type(f"{told} holds what smet-train never writes ({what(error)}); {remedy}") from error


def what(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyError) and error.args:
        return f"{str(error.args[0])[:80]} is missing"
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__


def open_own(path: Path, flags: int) -> int:
    """A descriptor of the regular file ``path``, which is made if ``flags`` say so, to be written to.

    Raises:
        OSError: if it can't be opened, or is a link or something else than a file.
    """
    require_own(path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def append_to(path: Path) -> BinaryIO:
    """The regular file ``path``, which is made if it is not there, open to be added to, without a buffer.

    Raises:
        OSError: as :func:`open_own`.
    """
    file: Any = os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0)
    return file


def require_own(path: Path) -> None:
    """Raises OSError if ``path`` is a link, a pipe, a socket or a device; nothing there, a file or a folder is well."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a link, through which nothing is written", str(path))
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        _require_regular(path, os.lstat(path))


def first_stray(folder: Path, linked: Collection[str] = ()) -> OSError | None:
    """The first of the names in ``folder`` that a run writes to and that lead elsewhere; None if there is none.

    Args:
        linked: names that may be links to folders.
    """
    for name in WRITTEN:
        if name in linked and (folder / name).is_dir():
            continue
        try:
            require_own(folder / name)
        except OSError as error:
            return error
    return None


def require_alike(saved: Any, like: Any, told: str) -> None:
    """See that a saved value is of the kind of ``like``, at all depths; where that is None or empty it may be any.

    Raises:
        TypeError: if it is not, or if a whole number is below -1 or does not fit into 64 bits.
    """
    if isinstance(like, dict):
        kinds: tuple[type, ...] = (dict,)
    elif isinstance(like, list | tuple):
        kinds = (list, tuple)
    else:
        kinds = (int, float) if isinstance(like, float) else (type(like),)
    if like is not None and type(saved) not in kinds:
        raise TypeError(f"{told} is {str(saved)[:40]!r}")
    if type(saved) is int and not -1 <= saved < 1 << 63:
        raise TypeError(f"{told} is {saved if abs(saved) < 1 << 80 else 'a very large number'}")
    if isinstance(like, dict):
        for key in like.keys() & saved.keys():
            require_alike(saved[key], like[key], f"{told}.{key}")
