"""Lines of a stream of chunks, and the documents that they make up, each with the position after it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from smet_train.data.rules import Fault


class At(NamedTuple):
    """A place between two lines of a file: bytes (decompressed) and lines before it."""

    bytes: int = 0
    lines: int = 0


Item = tuple[str | Fault, At]

_BOM = "\ufeff"


def split_lines(chunks: Iterable[bytes], longest_bytes: int) -> Iterator[tuple[bytes | None, int]]:
    """(line with its ending, bytes it takes); None for a line above ``longest_bytes``, of which no more is kept.

    A line ends with a line feed, a carriage return, or both, as in a text file that Python opens.
    """
    kept: list[bytes] = []  # the beginning of the line being read
    n_bytes = 0
    held = b""  # a carriage return at a chunk's end: a line feed may follow
    for chunk in chunks:
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""
        for piece in chunk[: len(chunk) - len(held)].splitlines(keepends=True):
            n_bytes += len(piece)
            if n_bytes <= longest_bytes:
                kept.append(piece)
            if piece.endswith((b"\n", b"\r")):
                yield (kept[0] if len(kept) == 1 else b"".join(kept)) if n_bytes <= longest_bytes else None, n_bytes
                kept, n_bytes = [], 0
            elif n_bytes > longest_bytes:
                kept = []
    n_bytes += len(held)
    if n_bytes:
        yield b"".join([*kept, held]) if n_bytes <= longest_bytes else None, n_bytes


def _decoded(line: bytes | None, number: int, longest_bytes: int) -> str | Fault:
    """Text of a line, its ending a line feed if it has one."""
    if line is None:
        return too_long(f"line {number}", longest_bytes)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(f"line {number}", f"it is not UTF-8 text (byte {error.start + 1} of the line: {error.reason})")
    if text.endswith("\r\n"):
        return text[:-2] + "\n"
    return text[:-1] + "\n" if text.endswith("\r") else text


def too_long(place: str, longest_bytes: int) -> Fault:
    """The fault of a document above ``data.max_document_bytes``."""
    return Fault(place, f"it is longer than data.max_document_bytes={longest_bytes}")


def read_lines(chunks: Iterable[bytes], at: At, longest_bytes: int) -> Iterator[Item]:
    """Each line without its ending and without a byte order mark; blank ones are empty."""
    position, number = at
    for line, n_bytes in split_lines(chunks, longest_bytes):
        position += n_bytes
        number += 1
        text = _decoded(line, number, longest_bytes)
        yield (text.removesuffix("\n").removeprefix(_BOM) if isinstance(text, str) else text), At(position, number)


def read_paragraphs(chunks: Iterable[bytes], at: At, longest_bytes: int) -> Iterator[Item]:
    """What lies between empty lines; two line feeds are taken away at a time, as ``str.split`` does."""
    return _read_joined(chunks, at, longest_bytes, empty_line_ends=True)


def read_whole(chunks: Iterable[bytes], at: At, longest_bytes: int) -> Iterator[Item]:
    """The file as one document."""
    return _read_joined(chunks, at, longest_bytes, empty_line_ends=False)


def _read_joined(chunks: Iterable[bytes], at: At, longest_bytes: int, empty_line_ends: bool) -> Iterator[Item]:
    position, number = at
    first = number + 1
    lines: list[str] = []
    joined_bytes = 0
    fault: Fault | None = None
    for line, n_bytes in split_lines(chunks, longest_bytes):
        position += n_bytes
        number += 1
        text = _decoded(line, number, longest_bytes)
        if text == "\n" and joined_bytes and empty_line_ends:
            yield fault or "".join(lines)[:-1].removeprefix(_BOM), At(position, number)
            lines, joined_bytes, fault, first = [], 0, None, number + 1
            continue
        joined_bytes += n_bytes
        if isinstance(text, Fault):
            fault = fault or text
        elif joined_bytes > longest_bytes:
            fault = fault or too_long(f"from line {first} on", longest_bytes)
        if fault:
            lines = []
        elif isinstance(text, str):
            lines.append(text)
    if joined_bytes:
        yield fault or "".join(lines).removeprefix(_BOM), At(position, number)
