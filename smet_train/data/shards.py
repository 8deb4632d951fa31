"""Documents of a source's files, one file after another."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from smet_train.data.documents import State
from smet_train.data.hashes import content_hashes
from smet_train.data.manifest import Manifest
from smet_train.data.opened import Damaged
from smet_train.data.records import FileReader, Position, Record
from smet_train.data.remote import is_missing, is_passing, is_url
from smet_train.data.retry import Retries
from smet_train.data.rules import Fault, ReadRules, Tally
from smet_train.errors import DataError

log = logging.getLogger(__name__)


@dataclass
class FileSet:
    """The files of a source, and how they are read.

    ``where`` is the source for messages; ``told`` holds files of which a fault was logged. ``manifest`` has the names
    by which a pass is ordered and taken up: where a run goes on, those that the files had when it began. ``place`` says
    what a position in a file is the end of.
    """

    where: str
    paths: Sequence[str]
    manifest: Manifest
    read: FileReader
    rules: ReadRules
    place: Callable[[list[int]], str]
    allow_changed: bool = False
    told: set[str] = field(default_factory=set)

    @cached_property
    def _stamps(self) -> dict[str, tuple[int, int]]:
        return {path: _stamp(path) for path in self.paths if not is_url(path)}

    def watch(self) -> None:
        """Remember the files' times, which ``check`` compares."""
        assert self._stamps is not None

    def check(self, number: int) -> None:
        """Look whether a file is still what the manifest says.

        Raises:
            DataError: if it is not, and that isn't allowed.
            OSError: if it can't be read.
        """
        path, known = self.paths[number], self.manifest.files[number]
        if is_url(path) or _stamp(path) == self._stamps[path]:
            return
        if content_hashes([path], sampled=self.manifest.sampled, cache_dir=None) == [known.hash]:
            return
        what = f"{path} (of {self.where}) has been changed since this run was started"
        if not self.allow_changed:
            raise DataError(
                f"{what}; restore it, or write data.allow_changed_source=true to read it as it is now, from where the "
                "run stands"
            )
        if path not in self.told:
            self.told.add(path)
            log.warning("data: %s; reading it as it is now", what)

    def order(self, key: tuple[int, int] | None) -> list[int]:
        """Numbers of the files in the order of a pass: as they are, or by a hash of ``key`` and of their names.

        A file that comes or goes doesn't change the order of the others.
        """
        numbers = list(range(len(self.paths)))
        if key is None:
            return numbers
        names = [file.name for file in self.manifest.files]
        return sorted(numbers, key=lambda n: hashlib.blake2b(os.fsencode(f"{key} {names[n]}"), digest_size=16).digest())


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class ShardStream:
    """A :class:`DocumentStream` over files.

    Args:
        order: (seed, epoch) by which the files are permuted; None: in their own order.
        state: of an earlier stream over the same files in the same order, to go on after it. Where files have come or
            gone since, it goes on in the file where it stood, or else in the one in its place.
    """

    def __init__(self, files: FileSet, order: tuple[int, int] | None, state: State | None) -> None:
        self._files = files
        self._order = files.order(order)
        self._number = 0  # in the order
        self._at: Position = None
        self._records: Iterator[Record] | None = None
        counts = (0, 0)
        if state is not None:
            self._number = self._find(state)
            self._at = state["at"] if self._name == state["file"] else None
            counts = (state["good"], state["bad"])
        self._tally = Tally(files.rules, files.told, counts)
        self._retries = Retries(files.rules.retries)
        self._last: tuple[str, list[int]] = "", []

    def __iter__(self) -> "ShardStream":
        return self

    def __next__(self) -> str:
        while self._number < len(self._order):
            record = self._next_record()
            if record is None:
                self._number, self._at, self._records = self._number + 1, None, None
                continue
            content, after = record
            text = self._tally.taken(content, self._path)
            self._at = after  # not before a fault was passed over: what ends a run ends the next one too
            if text is not None:
                self._last = self._path, after
                return text
        raise StopIteration

    def state_dict(self) -> State:
        """Where the next document is: file, its number in the order, place in it; and the counts of good and bad
        documents."""
        return {
            "file": self._name,
            "number": self._number,
            "at": self._at,
            "good": self._tally.good,
            "bad": self._tally.bad,
        }

    @property
    def bad(self) -> int:
        """Documents left out so far in this pass."""
        return self._tally.bad

    @property
    def last_fault(self) -> str:
        """The last document that was left out and why, "" if none was."""
        return self._tally.last

    @property
    def place(self) -> tuple[str, str]:
        """Where the last document came from: its file, and where it ends in that."""
        path, at = self._last
        return path, self._files.place(at)

    def end(self) -> None:
        """Wait for no further try: a read that fails from now on raises at once. For another thread."""
        self._retries.end()

    def _find(self, state: State) -> int:
        names = [self._files.manifest.files[number].name for number in self._order]
        return names.index(state["file"]) if state["file"] in names else min(state["number"], len(names))

    @property
    def _name(self) -> str | None:
        """Of the file being read; None after the last one."""
        return self._files.manifest.files[self._order[self._number]].name if self._number < len(self._order) else None

    @property
    def _path(self) -> str:
        return self._files.paths[self._order[self._number]]

    def _next_record(self) -> Record | None:
        """The next one of the current file, None at its end; tried again where that may help."""
        while True:
            try:
                if self._records is None:
                    self._files.check(self._order[self._number])
                    self._records = self._files.read(self._path, self._at)
                record = next(self._records, None)
            except Damaged as error:
                self._give_up_file(Fault("", str(error)))
                return None
            except OSError as error:
                self._records = None
                if is_passing(error):
                    self._retries.wait(self._path, error)
                    continue
                if not is_missing(error):
                    raise DataError(f"{self._path} can't be read: {error}", exit_status=1) from error
                self._give_up_file(Fault("", "it is not there any more", exit_status=1))
                return None
            self._retries.worked()
            return record

    def _give_up_file(self, fault: Fault) -> None:
        self._tally.note(self._path, fault)
