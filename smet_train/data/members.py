"""Files of several compressed members, one behind the other, as ``cat`` and parallel compressors make them."""

import bz2
import lzma
from collections.abc import Callable
from typing import Any

Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor  # of one member


class Members:
    """Reads all members of a binary file, or fails: Python's own readers of bz2 and xz take whatever they can't read
    behind a member for rubbish, and stop without a word.

    Args:
        raw: the file, from its beginning.
        make: a decompressor of one member.
        chunk_bytes: are read at a time.
        padding: whether zero bytes may follow a member, in groups of so many; 0 if none may.
    """

    def __init__(self, raw: Any, make: Callable[[], Decompressor], chunk_bytes: int, padding: int = 0) -> None:
        self._raw = raw
        self._make = make
        self._chunk_bytes = chunk_bytes
        self._padding = padding
        self._member: Decompressor | None = None
        self._number = 0
        self._begin = 0  # of the member, in bytes of the file
        self._taken = 0  # bytes of the file that are read
        self._ahead = b""  # of them those that belong to no member yet

    def read1(self, n_bytes: int) -> bytes:
        """At most ``n_bytes`` of the content; empty at its end.

        Raises:
            EOFError: if a member is cut short.
            ValueError: if something is no member; it says which one should be there, and from which byte on.
        """
        while True:
            if self._member is None and not self._next_member():
                return b""
            content = self._decompress(n_bytes)
            if content:
                return content

    def _next_member(self) -> bool:
        """Begin the member that comes; False at the end of the file."""
        self._begin = self._taken - len(self._ahead)
        if self._padding and self._number:
            self._pass_padding()
        self._ahead = self._ahead or self._fill()
        if not self._ahead:
            return False
        self._number += 1
        self._member = self._make()
        return True

    def _pass_padding(self) -> None:
        end = self._begin
        while not (ahead := self._ahead.lstrip(b"\0")):
            self._ahead = self._fill()
            if not self._ahead:
                break
        self._ahead = ahead
        self._begin = self._taken - len(ahead)
        if (self._begin - end) % self._padding:
            raise ValueError(
                f"zero bytes that are no padding; in part {self._number + 1}, from byte {end:,} of the file on"
            )

    def _decompress(self, n_bytes: int) -> bytes:
        member = self._member
        assert member is not None
        data = b""
        if member.needs_input:
            data = self._ahead or self._fill()
            self._ahead = b""
            if not data:
                raise EOFError(f"member {self._number} is cut short")
        try:
            content = member.decompress(data, n_bytes)
        except Exception as error:  # each library has its own
            raise ValueError(f"{error}; in part {self._number}, from byte {self._begin:,} of the file on") from error
        if member.eof:
            self._ahead = member.unused_data
            self._member = None
        return content

    def _fill(self) -> bytes:
        chunk: bytes = self._raw.read(self._chunk_bytes)
        self._taken += len(chunk)
        return chunk
