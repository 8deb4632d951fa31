"""Full windows of tokens over the training documents, endless, with an exact position."""

from collections.abc import Iterator
from typing import Any

from smet_train.data.blocks import Block, BlockReader, Position
from smet_train.data.sources import Source
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError

_FORMAT = 2
_FEW_BAD = 10  # so many are no reason to end, whatever their fraction
# Tokenized together, which is faster than one by one; of no consequence for what comes out.
_GROUP_DOCUMENTS = 16
_GROUP_CHARACTERS = 200_000


class TokenWindows(Iterator[list[int]]):
    """Endless iterator of windows of ``sequence_tokens + 1`` ids.

    Documents follow one another, each ended by the end-of-text token, and are cut without padding. A window begins
    with the last token of the one before it (the first with an end-of-text token), so every token is a target once.

    Args:
        seed: of the order of documents.
        shuffle_documents: documents of a block that is shuffled; 1 keeps the source's order.
        validation_fraction: of the documents, held out by hash.
        max_bad_fraction: of the rows read, that may be left out as bad.
        allow_changed_source: take a position up in a source of other content.
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
        max_bad_fraction: float = 1.0,
        allow_changed_source: bool = False,
    ) -> None:
        self._source_name = source.name
        self._max_bad_fraction = max_bad_fraction
        self._allow_changed_source = allow_changed_source
        self.sequence_tokens = sequence_tokens
        self._tokenizer = tokenizer
        self._reader = BlockReader(
            source, seed=seed, shuffle_documents=shuffle_documents, validation_fraction=validation_fraction
        )
        # What a position has a meaning for; kept in the state, compared on load.
        self._identity: dict[str, Any] = {
            "source": source.fingerprint,
            "tokenizer": tokenizer.content_hash,
            "seed": seed,
            "data.shuffle_documents": shuffle_documents,
            "data.validation_fraction": validation_fraction,
        }
        self._position = Position()  # of the current block
        self._block: Block | None = None  # None: not yet read
        self._encoded: dict[int, list[int]] = {}  # documents of the block that are tokenized
        self._document = 0  # the current one, in the block
        self._token = 0  # the next one, in the document
        self._overlap = tokenizer.eos_id
        self._documents = 0  # that were used up
        self._bad = 0  # rows left out before the current block
        self._tokens = 0  # that were targets

    def __next__(self) -> list[int]:
        """The next window.

        Raises:
            DataError: if the source can't be read or has no training document.
        """
        window = [self._overlap]
        while len(window) <= self.sequence_tokens:
            tokens = self._current_tokens()
            taken = tokens[self._token : self._token + self.sequence_tokens + 1 - len(window)]
            window += taken
            self._token += len(taken)
            if self._token == len(tokens):
                self._document, self._token = self._document + 1, 0
                self._documents += 1
        self._overlap = window[-1]
        self._tokens += self.sequence_tokens
        return window

    def state_dict(self) -> dict[str, Any]:
        """The position after the last window; JSON-able, of a size that doesn't grow."""
        return {
            "format": _FORMAT,
            "identity": dict(self._identity),
            "epoch": self._position.epoch,
            "block": self._position.block,
            "block_state": self._position.state,
            "document": self._document,
            "token": self._token,
            "overlap": self._overlap,
            "documents": self._documents,
            "bad": self._bad,
            "tokens": self._tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the window that was the last when ``state`` was taken.

        Raises:
            DataError: if the source, the tokenizer or the documents' order differs from that of ``state``.
        """
        if state.get("format") != _FORMAT:
            raise DataError(f"the checkpoint's data position has format {state.get('format')}, not {_FORMAT}")
        self._check_identity(state["identity"])
        self._position = Position(state["epoch"], state["block"], state["block_state"])
        self._block, self._encoded = None, {}
        self._document, self._token, self._overlap = state["document"], state["token"], state["overlap"]
        self._documents, self._bad, self._tokens = state["documents"], state["bad"], state["tokens"]

    def _check_identity(self, saved: dict[str, Any]) -> None:
        for key, now in self._identity.items():
            if key == "source" and self._allow_changed_source:
                continue
            if saved.get(key) == now:
                continue
            if key in ("source", "tokenizer"):
                raise DataError(
                    f"the data {key} has changed since the checkpoint was written (its hash was "
                    f"{str(saved.get(key))[:12]}, now it is {str(now)[:12]}), so the position in the stream means "
                    f"nothing; restore the {key}, or start over with checkpoint.resume=never"
                )
            raise DataError(
                f"the checkpoint's data position belongs to {key}={saved.get(key)}, not {key}={now}; write "
                f"{key}={saved.get(key)}, or start over with checkpoint.resume=never"
            )

    def _current_tokens(self) -> list[int]:
        """Tokens of the current document with its end-of-text token; moves on to the next block when need be."""
        if self._block is None:
            self._block = self._read_block()
        if self._document == len(self._block.documents):
            self._position, self._bad = self._block.following, self._bad + self._block.bad
            self._block = self._read_block()
            self._encoded, self._document = {}, 0
        if self._document not in self._encoded:
            self._encoded = self._encode_group(self._block.documents, self._document)
        return self._encoded[self._document]

    def _read_block(self) -> Block:
        block = self._reader.read(self._position)
        bad, seen = self._bad + block.bad, self._bad + block.bad + self._documents + len(block.documents)
        if bad > max(_FEW_BAD, self._max_bad_fraction * seen):
            raise DataError(
                f"{self._source_name}: {bad} of {seen} documents are bad, more than "
                f"data.max_bad_fraction={self._max_bad_fraction:g} of them; train.log names them. Correct the files, "
                "or raise data.max_bad_fraction"
            )
        return block

    def _encode_group(self, documents: list[str], first: int) -> dict[int, list[int]]:
        end, characters = first, 0
        while end < min(len(documents), first + _GROUP_DOCUMENTS) and characters < _GROUP_CHARACTERS:
            characters += len(documents[end])
            end += 1
        eos = self._tokenizer.eos_id
        encoded = self._tokenizer.encode_many(documents[first:end])
        return {first + i: [*tokens, eos] for i, tokens in enumerate(encoded)}
