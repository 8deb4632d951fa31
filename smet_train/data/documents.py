"""One pass over the documents of a source, with a position that can be saved and taken up again."""

import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from gzip import BadGzipFile
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import IterableDataset

from smet_train.errors import DataError

Row = dict[str, Any]
State = dict[str, Any]

# What a damaged or mistaken file raises; anything else (a lost connection, a failing disk) is not the user's mistake.
_BAD_CONTENT = (ValueError, EOFError, BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException)


def shuffle_shards(dataset: IterableDataset, order: tuple[int, int]) -> IterableDataset:
    """``dataset`` with its shards permuted by ``order`` = (seed, epoch), rows in their order within a shard.

    A buffer of one row and of one shard holds nothing, so the position stays exact.
    """
    return dataset.shuffle(generator=np.random.default_rng(order), buffer_size=1, max_buffer_input_shards=1)


class DocumentStream:
    """Iterator of the documents (str) of one pass; blank rows are left out.

    Args:
        dataset: used by this stream alone; it carries the position.
        read_text: row -> text; raises DataError if the row holds none.
        where: the source, for messages.
        shards: the shards' names in unshuffled order, () if unknown.
        order: what ``shuffle_shards`` was given, None if the shards are in order.
        state: of an earlier stream over the same documents in the same order, to go on after it.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        read_text: Callable[[Row], str],
        *,
        where: str,
        shards: tuple[str, ...],
        order: tuple[int, int] | None,
        state: State | None,
    ) -> None:
        self._dataset = dataset
        self._read_text = read_text
        self._where = where
        self._shards = shards
        self._order = order
        if state is not None:
            dataset.load_state_dict(state)
        self._rows: Iterator[Row] = iter(dataset)

    def __iter__(self) -> "DocumentStream":
        return self

    def __next__(self) -> str:
        """The next document.

        Raises:
            DataError: naming the file, if it is damaged, not UTF-8, or lacks the text field.
        """
        while True:
            try:
                text = self._read_text(next(self._rows))
            except (StopIteration, DataError):
                raise
            except Exception as error:  # the boundary to datasets, fsspec and pyarrow, each with its own exceptions
                raise self._failure(error) from error
            if text and not text.isspace():
                return text

    def state_dict(self) -> State:
        """The position after the last document; JSON-able."""
        state: State = self._dataset.state_dict()
        return state

    def _failure(self, error: Exception) -> DataError:
        what = " ".join(str(error).split())[:500]
        if not isinstance(error, RowError):
            what = f"{type(error).__name__}: {what}"
        file = self._current_shard()
        place = f"{file} (of {self._where})" if file else self._where
        return DataError(f"can't read {place}: {what}", exit_status=2 if isinstance(error, _BAD_CONTENT) else 1)

    def _current_shard(self) -> str | None:
        """The name of the file being read. ``datasets`` doesn't tell: shuffle the names alike and count."""
        position = _find_shard_index(self._dataset.state_dict())
        if position is None or not 0 <= position < len(self._shards):
            return None
        names = IterableDataset.from_generator(_named, gen_kwargs={"names": list(self._shards)})
        if self._order is not None:
            names = shuffle_shards(names, self._order)
        return str(list(names)[position]["name"])


def _named(names: list[str]) -> Iterator[Row]:
    for name in names:
        yield {"name": name}


def _find_shard_index(state: object) -> int | None:
    """The ``shard_idx`` of the innermost iterable, which is the one that opens files."""
    while isinstance(state, dict):
        if "shard_idx" in state:
            return int(state["shard_idx"])
        state = state.get("examples_iterable")
    return None


class RowError(ValueError):
    """A row that holds no text; the stream turns it into a DataError that names the file."""


def read_field(field: str, columns: Iterable[str]) -> Callable[[Row], str]:
    """Reader of the column ``field`` among ``columns``."""
    columns = sorted(columns)
    return lambda row: _text_of(row, field, columns)


def read_line(row: Row) -> str:
    """Reader of plain text."""
    return str(row["text"]).removeprefix("\ufeff")


def read_json_line(field: str) -> Callable[[Row], str]:
    """Reader of a line that is a JSON object."""

    def read(row: Row) -> str:
        line = read_line(row)
        if not line or line.isspace():
            return ""
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RowError(f"a line is not JSON ({error}): {line[:80]!r}") from None
        if not isinstance(record, dict):
            raise RowError(f"a line holds a {type(record).__name__}, not a JSON object: {line[:80]!r}")
        return _text_of(record, field, record)

    return read


def _text_of(row: Row, field: str, columns: Iterable[str]) -> str:
    text = row.get(field)
    if text is None:
        raise RowError(f"a row has no text in data.text_field={field!r}; its columns are {', '.join(columns)}")
    if not isinstance(text, str):
        raise RowError(f"data.text_field={field!r} holds {type(text).__name__}, not text")
    return text
