"""Documents of a registered source, one after the other; the position is a number."""

from collections.abc import Sequence

from smet_train.data.documents import State
from smet_train.data.lines import too_long
from smet_train.data.rules import Fault, ReadRules, Tally


class SequenceStream:
    """A :class:`~smet_train.data.documents.DocumentStream` over anything with ``len()`` and ``[i]``, in its order.

    Args:
        count: of the documents.
        name: of the source, for messages.
        told: see :class:`Tally`.
        state: of an earlier stream over the same documents, to go on after it.
    """

    def __init__(
        self, documents: Sequence[str], count: int, name: str, rules: ReadRules, told: set[str], state: State | None
    ) -> None:
        self._documents = documents
        self._count = count
        self._name = name
        self._most_bytes = rules.max_document_bytes
        self._tally = Tally(rules, told, (state["good"], state["bad"]) if state else (0, 0))
        self._at: int = state["at"] if state else 0

    def __iter__(self) -> "SequenceStream":
        return self

    def __next__(self) -> str:
        while self._at < self._count:
            text = self._tally.taken(self._read(self._at), self._name)
            self._at += 1
            if text is not None:
                return text
        raise StopIteration

    def _read(self, number: int) -> str | Fault:
        place = f"document {number}"
        try:
            text = self._documents[number]
        except Exception as error:  # the boundary to code that is not ours
            return Fault(place, f"{type(error).__name__}: {error}", exit_status=1)
        if not isinstance(text, str):
            return Fault(place, f"it is not a text but {type(text).__name__}")
        try:
            n_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            return Fault(place, f"it holds half of a character ({error.reason})")
        return text if n_bytes <= self._most_bytes else too_long(place, self._most_bytes)

    def state_dict(self) -> State:
        """The number of the next document, and how many were good and bad."""
        return {"at": self._at, "good": self._tally.good, "bad": self._tally.bad}

    @property
    def bad(self) -> int:
        """Documents of this pass that were left out."""
        return self._tally.bad

    @property
    def place(self) -> tuple[str, str]:
        """Where the last document came from: the source, and its number there."""
        return self._name, f"document {self._at - 1}"

    def end(self) -> None:
        """Nothing is waited for."""
