"""One pass over the documents of a source, with a position that can be saved and taken up again."""

import json
import logging
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from gzip import BadGzipFile
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import IterableDataset

from smet_train.errors import DataError

log = logging.getLogger(__name__)

_TOLD = 3  # rows left out that are told on the terminal
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
        longest: characters of a document from which it counts as bad.
        skip_bad: leave out rows without text, or of text that isn't UTF-8, instead of ending.
        order: what ``shuffle_shards`` was given, None if the shards are in order.
        state: of an earlier stream over the same documents in the same order, to go on after it.

    Attributes:
        bad: rows that were left out by this stream.
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
        longest: int = 10_000_000,
        skip_bad: bool = False,
    ) -> None:
        self._dataset = dataset
        self._read_text = read_text
        self._where = where
        self._shards = shards
        self._order = order
        self._longest = longest
        self._skip_bad = skip_bad
        self.bad = 0
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
                text = self._sound(self._read_text(next(self._rows)))
            except (StopIteration, DataError):
                raise
            except RowError as error:
                if not self._skip_bad:
                    raise self._failure(error) from error
                self._leave_out(error)
                continue
            except Exception as error:  # the boundary to datasets, fsspec and pyarrow, each with its own exceptions
                raise self._failure(error) from error
            if text and not text.isspace():
                return text

    def _sound(self, text: str) -> str:
        if len(text) > self._longest:
            raise RowError(f"a document of {len(text):,} characters, more than data.longest_document={self._longest}")
        if self._skip_bad and "\ufffd" in text:
            raise RowError(f"text that is not UTF-8: {text[:80]!r}")
        return text

    def _leave_out(self, error: "RowError") -> None:
        self.bad += 1
        level = logging.WARNING if self.bad <= _TOLD else logging.INFO
        log.log(level, "data: left out: %s: %s", self._place(), " ".join(str(error).split())[:200])

    def state_dict(self) -> State:
        """The position after the last document; JSON-able."""
        state: State = self._dataset.state_dict()
        return state

    def _failure(self, error: Exception) -> DataError:
        what = " ".join(str(error).split())[:500]
        if not isinstance(error, RowError):
            what = f"{type(error).__name__}: {what}"
        skip = "; correct it, or write data.on_bad=skip to leave out such documents"
        advice = skip if isinstance(error, RowError | UnicodeDecodeError) and not self._skip_bad else ""
        bad_content = isinstance(error, _BAD_CONTENT)
        return DataError(f"can't read {self._place()}: {what}{advice}", exit_status=2 if bad_content else 1)

    def _place(self) -> str:
        """File and line (of a file that is read line by line) where the stream stands."""
        file = self._current_shard()
        if file is None:
            return self._where
        row = _find_row(self._dataset.state_dict())
        return f"{file} (of {self._where}{f', line {row}' if row else ''})"

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


def _find_row(state: State) -> int | None:
    """The number, from 1 on, of the row that was read last; None where rows come in groups, and so does their count."""
    inner = state.get("examples_iterable")
    if not isinstance(inner, dict) or inner.get("previous_state") is not None:
        return None
    innermost = inner.get("examples_iterable")
    row = innermost.get("shard_example_idx") if isinstance(innermost, dict) else None
    return int(row) if row is not None else None


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
