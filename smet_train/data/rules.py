"""What is done about documents that can't be read: the run's rules, and the count against them."""

import logging
from dataclasses import dataclass

from smet_train.errors import DataError

log = logging.getLogger(__name__)

# Below so many documents of an epoch, the allowance is that of so many: one bad line of ten is no tenth of a corpus.
FEWEST_DOCUMENTS = 1000


@dataclass(frozen=True, slots=True)
class ReadRules:
    """How a source is read; each field is the ``data.*`` setting of its name."""

    on_bad: str = "error"  # error or skip
    max_bad_fraction: float = 0.01
    max_document_bytes: int = 50_000_000
    retries: int = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """A document, or the rest of a file, that can't be read: where, why, and the exit status of a run that ends by it.

    ``place`` is the part of a file ("line 7"), "" for the file itself.
    """

    place: str
    reason: str
    exit_status: int = 2

    def of(self, file: str) -> str:
        """The file, the place in it and the reason, as a message names them."""
        return f"{file}{self.place and ' '}{self.place}: {self.reason}"


class Tally:
    """Documents of one pass that were good and bad, held against the rules.

    Args:
        told: files whose first fault was logged already; shared by the passes over a source.
        state: of an earlier tally, to go on counting from.
    """

    def __init__(self, rules: ReadRules, told: set[str], state: tuple[int, int] = (0, 0)) -> None:
        self._rules = rules
        self._told = told
        self.good, self.bad = state
        self.last = ""  # the last fault that was passed over

    def taken(self, content: str | Fault, file: str) -> str | None:
        """``content`` if it is a document to train on, which is counted; None of one that is passed over, blank or bad.

        Raises:
            DataError: if bad documents are an error, or if there are too many.
        """
        if isinstance(content, Fault):
            self.note(file, content)
            return None
        if not content or content.isspace():
            return None
        self.good += 1
        return content

    def note(self, file: str, fault: Fault) -> None:
        """Pass over ``fault``, or not.

        Raises:
            DataError: if bad documents are an error, or if there are too many.
        """
        self.last = fault.of(file)
        if self._rules.on_bad == "error":
            raise DataError(
                f"{self.last}; mend it, or write data.on_bad=skip to leave such out", exit_status=fault.exit_status
            )
        if file not in self._told:
            self._told.add(file)
            log.warning("data: left out %s; further ones of this file are counted alone", self.last)
        bad = self.bad + 1
        seen = self.good + bad
        if bad > self._rules.max_bad_fraction * max(seen, FEWEST_DOCUMENTS):
            # Not counted: the position is before it, so that a run which goes on from there meets it again.
            raise DataError(
                f"{bad} of {seen} documents of this epoch are bad, more than data.max_bad_fraction="
                f"{self._rules.max_bad_fraction:g} allows; the last: {self.last}"
            )
        self.bad = bad
