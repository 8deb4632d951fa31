"""Documents packed into full windows of tokens, with no padding and a position of constant size."""

from collections.abc import Mapping
from typing import Any

from smet_train.data.documents import TrainingDocuments
from smet_train.data.sources import Source
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError


class TokenWindows:
    """Endless windows of ``sequence_tokens + 1`` token ids from the training documents.

    Documents follow one another, each ended by the end-of-text token. The last token of a window is the first of the
    next, so every token but the very first is predicted exactly once. Since a window ends inside or at the end of one
    document, the position is that document, the number of its tokens used, and the one token shared with the next
    window.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        *,
        sequence_tokens: int,
        seed: int,
        shuffle_documents: int,
        validation_fraction: float,
    ) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._length = sequence_tokens + 1
        self._documents = TrainingDocuments(
            source, seed=seed, block_documents=shuffle_documents, validation_fraction=validation_fraction
        )
        self._document_state: dict[str, Any] | None = None
        self._tokens: list[int] = []
        self._used = 0
        self._overlap: list[int] = []
        self._windows = 0
        self._documents_begun = 0

    def __iter__(self) -> "TokenWindows":
        return self

    def __next__(self) -> list[int]:
        window = self._overlap
        while len(window) < self._length:
            if self._used == len(self._tokens):
                self._next_document()
            taken = self._tokens[self._used : self._used + self._length - len(window)]
            window = window + taken
            self._used += len(taken)
        self._overlap = window[-1:]
        self._windows += 1
        return window

    def _next_document(self) -> None:
        self._document_state = self._documents.state_dict()
        self._tokens = [*self._tokenizer.encode(next(self._documents)), self._tokenizer.eos_id]
        self._used = 0
        self._documents_begun += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the windows to come, JSON-able, with counts for an audit."""
        return {
            "source": self._source.fingerprint,
            "tokenizer": self._tokenizer.content_hash,
            "document": self._document_state,
            "tokens_used": self._used,
            "overlap": self._overlap,
            "windows": self._windows,
            "documents_begun": self._documents_begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            DataError: if the source or the tokenizer is another one than then.
        """
        if state["source"] != self._source.fingerprint:
            raise DataError(
                f"{self._source.description}: the data have changed since the checkpoint (files added, renamed or "
                "edited); put them back, or start a new run with checkpoint.resume=never"
            )
        if state["tokenizer"] != self._tokenizer.content_hash:
            raise DataError(
                "the tokenizer is not the one of the checkpoint; put the run folder's tokenizer.json back, or start a "
                "new run with checkpoint.resume=never"
            )
        if state["document"] is not None:
            self._documents.load_state_dict(state["document"])
            self._next_document()
        self._used = state["tokens_used"]
        self._overlap = list(state["overlap"])
        self._windows, self._documents_begun = state["windows"], state["documents_begun"]
