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
    """Where a block begins: epoch, number in the epoch, and datasets' state there (None at an epoch's start)."""

    epoch: int = 0
    block: int = 0
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A block's training documents, in the order in which they are trained on, where the next block begins, and how
    many bad rows were left out on the way."""

    documents: list[str]
    following: Position
    bad: int


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
        empty_epochs = bad = 0
        while True:
            rows, following, left_out = self._read_rows(position)
            bad += left_out
            kept = [row for row in rows if not is_validation(row, self._validation_fraction)]
            if kept:
                return Block(self._permuted(kept, position), following, bad)
            # A whole epoch was seen without a training document once two epochs have ended on the way.
            empty_epochs += following.epoch > position.epoch
            if empty_epochs == 2:
                raise DataError(
                    f"{self._source.name} has no training document: all fall into the validation split; lower "
                    f"data.validation_fraction={self._validation_fraction}"
                )
            position = following

    def _read_rows(self, position: Position) -> tuple[list[str], Position, int]:
        if self._stream is None or self._at != position:
            order = (self._seed, position.epoch) if self._shuffled else None
            self._stream = self._source.documents(order, position.state)
        before = self._stream.bad
        rows = list(islice(self._stream, self._rows))
        left_out = self._stream.bad - before
        if len(rows) < self._rows:
            following = Position(position.epoch + 1)
            self._stream = None
        else:
            following = Position(position.epoch, position.block + 1, self._stream.state_dict())
        self._at = following
        return rows, following, left_out

    def _permuted(self, documents: list[str], position: Position) -> list[str]:
        if not self._shuffled:
            return documents
        order = np.random.default_rng([self._seed, position.epoch, position.block]).permutation(len(documents))
        return [documents[i] for i in order]
