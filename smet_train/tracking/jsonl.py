"""metrics.jsonl: one JSON object a line, the source of truth of a run."""

import errno
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smet_train import opening
from smet_train.errors import SmetError

log = logging.getLogger(__name__)


def to_line(event: dict[str, Any]) -> str:
    """Strict JSON, which has no NaN or infinity: they are written as the strings "nan", "inf" and "-inf"."""
    finite = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in event.items()
    }
    return json.dumps(finite, allow_nan=False, ensure_ascii=False) + "\n"


def each_event(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a metrics file, one after the other; a last line torn by a crash, or still being written, is left
    out.

    Raises:
        ValueError: if a line other than the last is not a JSON object.
    """
    torn: ValueError | None = None
    with opening.regular(path) as lines:
        for number, line in enumerate(opening.bounded_lines(lines), start=1):
            if torn is not None:
                raise torn
            try:
                event = dict(opening.parse_json(line))
            except (ValueError, TypeError) as error:
                torn = ValueError(f"{path}, line {number}: {error}")
            else:
                yield event
            if not line.endswith(b"\n"):
                return  # what comes next would be the rest of this line, when a run writes it


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics file, see :func:`each_event`."""
    return list(each_event(path))


def events_until(path: Path, position: int) -> Iterator[dict[str, Any]]:
    """The events of a metrics file before ``position`` (bytes, the end of a line), one after the other, as far as
    they are there.

    Raises:
        ValueError: if a line is not a JSON object.
    """
    with opening.regular(path) as lines:
        for line in opening.bounded_lines(lines):
            if lines.tell() - len(line) >= position:
                return
            yield dict(opening.parse_json(line))


class JsonlSink:
    """Appends events to ``path``; each line reaches the operating system at once.

    Args:
        patient: keep lines that can't be written in memory, with one warning, and write them when there is room again.

    Raises:
        SmetError: if the file can't be opened.
    """

    def __init__(self, path: Path, *, patient: bool = False) -> None:
        self.path = path
        self._patient = patient
        self._told = False
        self._pending = b""
        try:
            self._file = opening.append_to(path)
        except OSError as error:
            raise self._unwritable(error) from error

    def emit(self, event: dict[str, Any]) -> None:
        """Append ``event``.

        Raises:
            SmetError: if the line can't be written (disk full), unless patient.
        """
        # a file's name may not be UTF-8; JSON all the same
        self._pending += to_line(event).encode(errors="backslashreplace")
        self._write()

    def position(self) -> int:
        """Size of the file in bytes, with everything in it on disk; if patient, with what waits for room.

        Raises:
            SmetError: if it can't be brought there (disk full, where a network's disk tells it late), unless patient.
        """
        self._write(flush=True)
        return self._file.tell() + len(self._pending)

    def _write(self, *, flush: bool = False) -> None:
        try:
            if self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
            if self._pending:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if flush:
                os.fsync(self._file.fileno())
        except OSError as error:
            if not self._patient:
                raise self._unwritable(error) from error
            if not self._told:
                log.warning(
                    "%s can't be written: %s; its lines are kept in memory until there is room "
                    "(checkpoint.on_error=warn: training goes on)",
                    self.path, error,
                )  # fmt: skip
            self._told = True
        else:
            if self._told:
                log.warning("%s is written again, nothing is missing from it", self.path)
            self._told = False

    def _unwritable(self, error: OSError) -> SmetError:
        return SmetError(
            f"{self.path} can't be written: {error}; make room and start the same command again, which goes on from "
            "the newest checkpoint",
            exit_status=1,
        )

    def truncate(self, position: int) -> None:
        """Cut off what was written after a checkpoint, so that a resumed run writes the file of an unbroken one."""
        size = self.path.stat().st_size
        if size < position:
            log.warning(
                "%s has %d bytes, fewer than the %d at the checkpoint: earlier events are missing from it",
                self.path, size, position,
            )  # fmt: skip
            position = size
        self._pending = b""
        self._file.truncate(position)
        self._file.seek(position)

    def close(self) -> None:
        """Close the file; a later :meth:`emit` is an error. What there is still no room for is lost, with a warning."""
        if self._patient:
            self._write()
            if self._pending:
                log.warning("%s lacks its last %d bytes: there was no room for them", self.path, len(self._pending))
        self._file.close()


class NoMetrics:
    """Of a process that writes nothing: another one of its run does."""

    def emit(self, event: dict[str, Any]) -> None:
        """Forget ``event``."""

    def position(self) -> int:
        """The size of nothing."""
        return 0

    def truncate(self, position: int) -> None:
        """There is nothing to cut off."""

    def close(self) -> None:
        """There is nothing to close."""


MetricsFile = JsonlSink | NoMetrics
