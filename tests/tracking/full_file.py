"""A disk that is full, for what appends to a file."""

import errno
import os
from typing import Any


class FullFile:
    """A file on a disk with room for some bytes more."""

    def __init__(self, file: Any, room_bytes: int) -> None:
        self._file = file
        self.room_bytes = room_bytes

    def write(self, content: bytes) -> int:
        if not self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = content[: self.room_bytes]
        self.room_bytes -= len(fits)
        return int(self._file.write(fits))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
