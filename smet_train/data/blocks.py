"""Training documents in blocks, permuted inside a block: a shuffle whose state is the position of one block."""

from dataclasses import dataclass
from itertools import islice

import numpy as np

from smet_train.data.documents import DocumentStream, State
from smet_train.data.sources import Source
from smet_train.data.split import is_validation
from smet_train.errors import DataError

# Documents of a block that isn't shuffled: enough that taking the position of each is no cost.
_UNSHUFFLED_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Position:
    """Where a block begins: epoch, number in the epoch, and the source's state there (None at an epoch's start)."""

    epoch: int = 0
    block: int = 0
    state: State | None = None
    left_out: int = 0  # bad documents before the block, over all epochs


@dataclass(frozen=True, slots=True)
class Block:
    """A block's training documents, in the order in which they are trained on, the place of each (see DocumentStream),
    and where the next block begins."""

    documents: list[str]
    places: list[tuple[str, str]]
    following: Position


_Row = tuple[str, tuple[str, str]]  # a document and its place


class BlockReader:
    """Reads the endless blocks of a source's training documents, epoch after epoch.

    The order is a function of (seed, epoch, block number): shards are permuted for each epoch, rows inside each block
    of ``shuffle_documents``; 1 keeps the source's own order. No generator is carried, so nothing is lost on resume.
    """

    def __init__(self, source: Source, *, seed: int, shuffle_documents: int, validation_fraction: float) -> None:
        self._source = source
        self._seed = seed
        self._shuffled = shuffle_documents > 1
        self._rows = shuffle_documents if self._shuffled else _UNSHUFFLED_BLOCK
        self._validation_fraction = validation_fraction
        self._stream: DocumentStream | None = None
        self._at: Position | None = None  # where self._stream stands
        self._epoch_has_documents = False

    def read(self, position: Position) -> Block:
        """The first block from ``position`` on that holds a training document.

        Raises:
            DataError: if the source has no training document, or can't be read.
        """
        empty_epochs = 0
        while True:
            rows, following = self._read_rows(position)
            kept = [row for row in rows if not is_validation(row[0], self._validation_fraction)]
            if kept:
                documents, places = zip(*self._permuted(kept, position), strict=True)
                return Block(list(documents), list(places), following)
            # A whole epoch was seen without a training document once two epochs have ended on the way.
            empty_epochs += following.epoch > position.epoch
            if empty_epochs == 2:
                raise DataError(
                    f"{self._source.name} has no training document: all fall into the validation split; lower "
                    f"data.validation_fraction={self._validation_fraction}"
                )
            position = following

    def end(self) -> None:
        """Wait for nothing any more; for another thread."""
        stream = self._stream
        if stream is not None:
            stream.end()

    def _read_rows(self, position: Position) -> tuple[list[_Row], Position]:
        if self._stream is None or self._at != position:
            order = (self._seed, position.epoch) if self._shuffled else None
            self._stream = self._source.documents(order, position.state)
        self._at = None  # nowhere, if it fails
        bad = self._stream.bad
        rows: list[_Row] = []
        failed = False
        try:
            rows.extend((text, self._stream.place) for text in islice(self._stream, self._rows))
        except DataError:
            # In the source's own order, what comes before is trained on; a shuffled block is whole or none.
            if self._shuffled or not rows:
                raise
            failed = True
        left_out = position.left_out + self._stream.bad - bad
        if failed:
            following = Position(position.epoch, position.block + 1, self._stream.state_dict(), left_out)
            self._stream = None
        elif len(rows) < self._rows:
            following = Position(position.epoch + 1, left_out=left_out)
            self._stream = None
        else:
            following = Position(position.epoch, position.block + 1, self._stream.state_dict(), left_out)
        self._at = following
        return rows, following

    def _permuted(self, rows: list[_Row], position: Position) -> list[_Row]:
        if not self._shuffled:
            return rows
        order = np.random.default_rng([self._seed, position.epoch, position.block]).permutation(len(rows))
        return [rows[i] for i in order]
