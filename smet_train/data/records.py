"""Readers of one file by kind: its documents and faults in order, each with the position after it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smet_train.data.files import HEAD_BYTES
from smet_train.data.lines import At, read_lines, read_paragraphs, read_whole, too_long
from smet_train.data.opened import Damaged, check_content, open_raw, read_chunks
from smet_train.data.python_source import split_source
from smet_train.data.rules import Fault

Position = list[int] | None  # None: a file's beginning; else as the reader of its kind gives it; JSON-able
Record = tuple[str | Fault, list[int]]
# (file, position) -> what follows. Raises Damaged where nothing more of the file can be read, OSError if it fails.
FileReader = Callable[[str, Position], Iterator[Record]]

_UNKNOWN_BYTES = -1
_UNITS = {"line": read_lines, "paragraph": read_paragraphs, "document": read_whole}
_ROWS = 512
NOT_TEXT = "it is not text: a NUL byte lies in its first 64 KiB"


def by_count(position: Position) -> Position:
    """A position in lines that holds in a file whose bytes are other ones: lines are counted from its beginning."""
    return position and [_UNKNOWN_BYTES, position[1]]


def text_reader(unit: str, longest_bytes: int) -> FileReader:
    """Reader of text by line, paragraph or document; a position is bytes and lines."""

    def read(name: str, position: Position) -> Iterator[Record]:
        at, lines = _begin(position)
        for text, after in _UNITS[unit](_text_chunks(name, at), at, longest_bytes):
            if after.lines > lines:
                yield text, list(after)

    return read


def jsonl_reader(field: str, longest_bytes: int) -> FileReader:
    """Reader of the text in ``field`` of JSON objects, one a line; a position is bytes and lines."""

    def read(name: str, position: Position) -> Iterator[Record]:
        at, lines = _begin(position)
        for line, after in read_lines(read_chunks(name, at.bytes), at, longest_bytes):
            if after.lines <= lines:
                continue
            yield (line if isinstance(line, Fault) else _parsed(line, field, after.lines)), list(after)

    return read


def _begin(position: Position) -> tuple[At, int]:
    """Where reading begins, and the lines that are passed over from the file's beginning on."""
    at = At(*position) if position else At()
    return (At() if at.bytes == _UNKNOWN_BYTES else at), at.lines


def _text_chunks(name: str, at: At) -> Iterator[bytes]:
    """Chunks of a file that is no binary one; of JSON lines each would be found out by itself."""
    for number, chunk in enumerate(read_chunks(name, at.bytes)):
        if number == 0 and at.bytes == 0 and b"\0" in chunk[:HEAD_BYTES]:
            raise Damaged(NOT_TEXT)
        yield chunk


def _parsed(line: str, field: str, number: int) -> str | Fault:
    if not line or line.isspace():
        return ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Fault(f"line {number}", f"it is not JSON ({why}): {line[:80]!r}")
    if not isinstance(record, dict):
        return Fault(f"line {number}", f"it holds a {type(record).__name__}, not a JSON object: {line[:80]!r}")
    return text_of(record, field, record, f"line {number}")


def text_of(record: Mapping[str, Any], field: str, columns: Iterable[str], place: str) -> str | Fault:
    """The text in ``field``, or what is wrong with it."""
    text = record.get(field)
    if text is None:
        return Fault(
            place, f"it has no text in data.text_field={field!r}; its columns are {', '.join(sorted(columns))}"
        )
    if not isinstance(text, str):
        return Fault(place, f"data.text_field={field!r} holds {type(text).__name__}, not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Fault(place, f"data.text_field={field!r} holds half of a character ({error.reason})")
    return text


def python_reader(name: str, position: Position) -> Iterator[Record]:
    """Reader of the pieces of a Python file; a position is a number of pieces."""
    begin = position[0] if position else 0
    with open(name, encoding="utf-8") as file:
        text = file.read()
    for number, piece in enumerate(split_source(text), 1):
        if number > begin:
            yield piece.removeprefix("\ufeff"), [number]


def parquet_reader(field: str, longest_bytes: int) -> FileReader:
    """Reader of a column of a Parquet file; a position is a row group and rows of it.

    A damaged row group is a fault, after which the next one is read; at most one row group's column is read again to
    come to a position.
    """

    def read(name: str, position: Position) -> Iterator[Record]:
        group, done = position or (0, 0)
        with closing(open_raw(name)) as raw:
            if not raw.peek(1):
                return
            check_content(name, raw)
            file = _parquet_file(raw)
            columns = file.schema_arrow.names
            if field not in columns:
                raise Damaged(
                    f"it has no column {field!r}; write data.text_field=, its columns are {', '.join(columns)}"
                )
            if columns.count(field) > 1:
                raise Damaged(f"it has {columns.count(field)} columns {field!r}; rename all but one of them")
            rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            if group < len(rows) and done == rows[group]:  # nothing of it is left, and reading it again takes time
                group, done = group + 1, 0
            for number in range(group, len(rows)):
                begin = done if number == group else 0
                yield from _row_group(file, field, number, sum(rows[:number]), begin, longest_bytes)

    return read


def _parquet_file(raw: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(raw, page_checksum_verification=True)
    except Exception as error:  # the boundary to pyarrow
        _reraise_if_passing(error)
        raise Damaged(f"it is not a Parquet file, or damaged ({error})") from error


def _reraise_if_passing(error: Exception) -> None:
    """Raises an error of the system or the network, which has a number or is a kind of its own, or of memory that is
    short; pyarrow's own are not."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error


def _row_group(
    file: pq.ParquetFile, field: str, number: int, rows_before: int, begin: int, longest_bytes: int
) -> Iterator[Record]:
    row = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=[number], columns=[field]):
            if row + batch.num_rows > begin:
                for value in _values(batch.column(field)):
                    row += 1
                    if row > begin:
                        yield checked(value, field, [field], f"row {rows_before + row}", longest_bytes), [number, row]
            else:
                row += batch.num_rows
    except Exception as error:  # the boundary to pyarrow
        _reraise_if_passing(error)
        yield Fault(f"row group {number + 1}", f"it is damaged ({' '.join(str(error).split())[:200]})"), [number + 1, 0]


def _values(column: pa.Array) -> Iterator[Any]:
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        for value in column:
            try:
                yield value.as_py()
            except UnicodeDecodeError as error:
                yield error


def checked(value: Any, field: str, columns: Iterable[str], place: str, longest_bytes: int) -> str | Fault:
    """The text that a column holds, or what is wrong with it."""
    if isinstance(value, UnicodeDecodeError):
        return Fault(place, f"it is not UTF-8 text ({value.reason})")
    # A character has at most four bytes, so that most texts need no counting.
    if isinstance(value, str) and 4 * len(value) > longest_bytes < len(value.encode(errors="replace")):
        return too_long(place, longest_bytes)
    return text_of({field: value}, field, columns, place)
