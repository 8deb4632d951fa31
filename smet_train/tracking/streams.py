"""Standard output and standard error that may end before the run does.

The reader of a pipe can go first (Ctrl-C in ``smet-train … | tee log`` reaches ``tee`` too), a terminal can be closed,
a disk that the output is written to can be full. None of them is worth a run.
"""

import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from smet_train.showing import shown, visible

log = logging.getLogger(__name__)


class LastingStream:
    """A text stream that goes on when what it writes to has gone; the text is dropped from then on.

    Everything but ``write``, ``writelines`` and ``flush`` is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def unchanged(self) -> "LastingStream":
        """What lasts as long, below what shows texts as they may leave the program."""
        return LastingStream(unchanged(self._stream))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text`` where it can still be; returns its length."""
        if not self._gone:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._leave(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write ``lines`` where they can still be."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is held back, where that can still be."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError as error:
                self._leave(error)

    def _leave(self, error: OSError) -> None:
        self._gone = True
        with suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
            # What it holds back goes nowhere: Python tries once more at its end, and would exit with 120.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        name = getattr(self._stream, "name", "the output")
        # Whom it would be told to has gone: a line of train.log.
        log.info("%s can't be written any more (%s); going on without", name, error.strerror or error)


class ShownStream:
    """A text stream on which every text is shown as it may leave the program: see :mod:`smet_train.showing`.

    Attributes:
        unchanged: the stream itself, for who takes care of it.
    """

    def __init__(self, stream: TextIO, show: Callable[[str], str]) -> None:
        self.unchanged = stream
        self._show = show

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchanged, name)

    def write(self, text: str) -> int:
        """Write ``text`` as it may be shown; returns its length."""
        self.unchanged.write(self._show(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write ``lines`` as they may be shown."""
        for line in lines:
            self.write(line)


def unchanged(stream: Any) -> TextIO:
    """The stream below a :class:`ShownStream`; another one as it is."""
    inner: Any = stream.unchanged if isinstance(stream, ShownStream | LastingStream) else stream
    return inner


def lasting(stream: TextIO) -> TextIO:
    """``stream``, or what makes it last if it doesn't."""
    return stream if isinstance(stream, LastingStream) else LastingStream(stream)  # type: ignore[return-value]


def let_output_encode_anything() -> None:
    """From here on what an encoding has no sign for is written as an escape: a name that is not UTF-8, or a "…" on a
    terminal that knows Latin letters alone. Control characters are escapes too, and errors tell no secrets of URLs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    streams: Any = sys
    if not isinstance(sys.stdout, ShownStream | LastingStream):
        streams.stdout = ShownStream(sys.stdout, visible)
    if not isinstance(sys.stderr, ShownStream | LastingStream):
        streams.stderr = ShownStream(sys.stderr, shown)


def let_output_end_first() -> None:
    """From here on the process outlives its standard output and its standard error."""
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
