"""Full windows of tokens over the training documents, endless, with an exact position."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from smet_train import opening
from smet_train.data.blocks import Block, BlockReader, Position
from smet_train.data.rules import Fault, Tally
from smet_train.data.sources import Source
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError

log = logging.getLogger(__name__)

_FORMAT = 2
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
        allow_changed_source: take up a position in files that have changed since, as well as can be.
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
        allow_changed_source: bool = False,
    ) -> None:
        self.sequence_tokens = sequence_tokens
        self._tokenizer = tokenizer
        self._source = source
        self._allow_changed_source = allow_changed_source
        self._reader = BlockReader(
            source, seed=seed, shuffle_documents=shuffle_documents, validation_fraction=validation_fraction
        )
        # What a position has a meaning for; kept in the state, compared on load.
        self._identity: dict[str, Any] = {
            "source": source.identity,
            "tokenizer": tokenizer.content_hash,
            "seed": seed,
            "data.shuffle_documents": shuffle_documents,
            "data.validation_fraction": validation_fraction,
        }
        self._position = Position()  # of the current block
        self._block: Block | None = None  # None: not yet read
        self._encoded: dict[int, list[int] | Fault] = {}  # documents of the block that are tokenized
        self._document = 0  # the current one, in the block
        self._token = 0  # the next one, in the document
        self._overlap = tokenizer.eos_id
        self._documents = 0  # that were used up
        self._tokens = 0  # that were targets
        self._told: set[str] = set()
        self._encodable = Tally(source.rules, self._told)  # of this epoch

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
            if self._token >= len(tokens):  # beyond it in a document that has become shorter
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
            "files": self._source.files,
            "epoch": self._position.epoch,
            "block": self._position.block,
            "block_state": self._position.state,
            "left_out": self._position.left_out,
            "document": self._document,
            "token": self._token,
            "overlap": self._overlap,
            "encodable": [self._encodable.good, self._encodable.bad],
            "documents": self._documents,
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
        block_state = state["block_state"]
        if self._has_changed(state["files"]) and block_state is not None:
            block_state = self._source.by_count(block_state)
        numbers = [state[key] for key in ("epoch", "block", "document", "token", "documents", "tokens")]
        if min(numbers) < 0 or not 0 <= state["overlap"] < self._tokenizer.vocab_size:
            raise DataError("the checkpoint's position in the data is none; resume from another checkpoint")
        self._position = Position(state["epoch"], state["block"], block_state, state["left_out"])
        self._block, self._encoded = None, {}
        self._document, self._token, self._overlap = state["document"], state["token"], state["overlap"]
        self._documents, self._tokens = state["documents"], state["tokens"]
        # States of earlier versions, in which such a document ended the run, have no count of them.
        self._encodable = Tally(self._source.rules, self._told, tuple(state.get("encodable", (0, 0))))

    def _check_identity(self, saved: dict[str, Any]) -> None:
        for key, now in self._identity.items():
            if saved.get(key) == now or (key == "tokenizer" and self._tokenizer.is_of(str(saved.get(key)))):
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

    def _has_changed(self, saved: dict[str, Any] | None) -> bool:
        """Whether the source's files are not those of ``saved``; an error unless it is allowed."""
        change = self._source.change_since(saved)
        if change is None:
            return False
        if not self._allow_changed_source:
            raise DataError(
                f"the data has changed since the checkpoint was written: {change}, so the position in it means "
                "nothing; restore the files, write data.allow_changed_source=true to go on in them as they are, or "
                "start over with checkpoint.resume=never"
            )
        log.warning("data: changed since the checkpoint was written, going on nevertheless: %s", change)
        return True

    def end(self) -> None:
        """Wait for nothing any more; for another thread."""
        self._reader.end()

    def _current_tokens(self) -> list[int]:
        """Tokens of the current document with its end-of-text token; moves on to the next block when need be."""
        if self._block is None:  # at the beginning, or at a position that a checkpoint tells
            with opening.malformed("the position in the data", DataError, "resume from another checkpoint"):
                self._block = self._reader.read(self._position)
        if self._document >= len(self._block.documents):  # beyond it in a block that has become shorter
            if self._block.following.epoch > self._position.epoch:
                self._encodable = Tally(self._source.rules, self._told)
            self._position = self._block.following
            self._block = self._reader.read(self._position)
            self._encoded, self._document = {}, 0
        if self._document not in self._encoded:
            self._encoded = self._encode_group(self._block.documents, self._document)
        tokens = self._encoded[self._document]
        if isinstance(tokens, Fault):
            file, place = self._block.places[self._document]
            self._encodable.note(file, replace(tokens, place=place))
            tokens = self._encoded[self._document] = []
        elif self._token == 0:
            self._encodable.good += 1
        return tokens

    def _encode_group(self, documents: list[str], first: int) -> dict[int, list[int] | Fault]:
        end, characters = first, 0
        while end < min(len(documents), first + _GROUP_DOCUMENTS) and characters < _GROUP_CHARACTERS:
            characters += len(documents[end])
            end += 1
        eos = self._tokenizer.eos_id
        encoded = self._tokenizer.encode_each(documents[first:end])
        return {first + i: ids if isinstance(ids, Fault) else [*ids, eos] for i, ids in enumerate(encoded)}
