"""One pass over the documents of a source, with a position that can be saved and taken up again."""

from collections.abc import Iterator
from typing import Any, Protocol

State = dict[str, Any]


class DocumentStream(Iterator[str], Protocol):
    """Iterator of the documents of one pass; blank ones are left out, bad ones as the source's rules say.

    ``next`` raises DataError, naming the file and the place in it, if a document can't be read or too many are bad.
    """

    def state_dict(self) -> State:
        """The position after the last document, and how many were good and bad; JSON-able."""

    @property
    def bad(self) -> int:
        """Documents of this pass that were left out, those before a position that was taken up included."""

    @property
    def place(self) -> tuple[str, str]:
        """Where the last document came from: its file or source, and where it ends in that ("line 7")."""

    def end(self) -> None:
        """Wait for nothing any more: a source that can't be reached fails at once. For another thread."""
