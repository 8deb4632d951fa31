"""What is fetched from the Hugging Face hub, and how its failures read."""

import json
import logging
import lzma
import pickle
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
from datasets import DatasetBuilder, Features, IterableDataset, Value, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from smet_train.data.documents import State
from smet_train.data.records import checked
from smet_train.data.retry import Retries
from smet_train.data.rules import Fault, ReadRules, Tally
from smet_train.errors import DataError

log = logging.getLogger(__name__)

# What lies in the files or in the code that reads them; anything else may be the network, which is tried again.
_BAD_CONTENT = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    RecursionError,
    ImportError,
    EOFError,
    BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
)
_LOCAL_DATA = "data.source=python_source, text, jsonl and parquet need no network"


def _is_content(error: Exception) -> bool:
    """Whether ``error`` is no failure of the network, so that another try would fail as well."""
    if isinstance(error, _BAD_CONTENT):
        return True
    # pyarrow raises OSError for damaged pages too, without the number that the system's errors have.
    frames = traceback.extract_tb(error.__traceback__)
    return type(error) is OSError and error.errno is None and bool(frames) and frames[-1].filename.startswith("pyarrow")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without huggingface_hub's log of each retry, for what fails here is told in one message."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_hub(name: str, subset: str | None, split: str, field: str) -> tuple[IterableDataset, list[str]]:
    """A streaming data set of the hub (or of a local folder laid out like one) of its column ``field`` alone, and the
    names of all its columns, as its first file has them.

    Raises:
        DataError: exit status 2 if there is no such data set, subset, split or column, 1 if the hub can't be reached.
    """
    log.info("data: opening %s on the hub", name)
    where = f"data.name={name} data.subset={subset} data.split={split}"
    try:
        with _quiet():
            builder = load_dataset_builder(name, subset)
            if hasattr(builder.config, "parse_agent_traces"):  # which finds other columns in some files
                builder.config.parse_agent_traces = False
            dataset = builder.as_streaming_dataset(split=split)
            columns: list[str] = dataset.column_names or list(next(iter(pickle.loads(pickle.dumps(dataset))), {}))
    except DatasetNotFoundError as error:
        raise DataError(f"data.name={name}: {_one_line(error)}") from error
    except (FileNotFoundError, ValueError) as error:
        # ValueError lists the subsets or splits that exist.
        raise DataError(f"{where}: {_one_line(error)}") from error
    except Exception as error:  # connections fail in too many ways to list
        if _is_content(error):
            raise DataError(f"{where} can't be read: {type(error).__name__}: {_one_line(error)}") from error
        raise DataError(
            f"data.name={name}: {_one_line(error)}. Is there a network? {_LOCAL_DATA}", exit_status=1
        ) from error
    if field not in columns:
        raise DataError(
            f"data.name={name} has no column {field!r}; write data.text_field=, its columns are {', '.join(columns)}"
        )
    _read_alone(builder, field)
    if dataset.features is not None:
        dataset.info.features = Features({**dataset.features, field: Value("large_string")})
    return dataset.select_columns([field]), columns


def _read_alone(builder: DatasetBuilder, field: str) -> None:
    """Let ``builder`` read, or at least hand on, the column ``field`` alone.

    It holds every file to the columns of the first one, and would fail at those that are never trained on.
    """
    if not hasattr(builder, "_cast_table"):  # those that make their rows one by one hold nothing to anything
        return
    builder._cast_table = partial(text_alone, field)
    if hasattr(builder.config, "columns"):  # of Parquet
        builder.config.columns = [field]
    elif hasattr(builder.config, "on_bad_lines"):  # of CSV, where a text of digits would become a number
        builder.config.features = Features({field: Value("string")})
    else:  # of JSON, which would look for the others' types
        builder.info.features = None


def text_alone(field: str, table: pa.Table, json_field_paths: Sequence[Sequence[str]] = ()) -> pa.Table:
    """The column ``field`` of ``table`` as large strings; null where it holds no UTF-8 text, or is not there.

    Args:
        json_field_paths: columns that are in JSON because their values are of several types.
    """
    column = table[field] if field in table.column_names else pa.nulls(len(table))
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if [field] in json_field_paths:
        column = pa.array([_text_in_json(value) for value in column.to_pylist()], pa.large_string())
    elif any(is_kind(kind) for is_kind in _TEXT_KINDS):
        column = column.cast(kind).cast(pa.large_binary())
        try:
            column = column.cast(pa.large_string())
        except pa.ArrowInvalid:
            column = pa.array([_decoded(value) for value in column.to_pylist()], pa.large_string())
    else:
        column = pa.nulls(len(table), pa.large_string())
    return pa.table({field: column})


_TEXT_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def _text_in_json(value: str | None) -> str | None:
    found = None if value is None else json.loads(value)
    return found if isinstance(found, str) else None


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def fetch_tokenizer(name: str) -> Path:
    """The path of a hub model's ``tokenizer.json``; its ``tokenizer_config.json``, if any, lies beside it.

    Raises:
        DataError: exit status 2 if the model or its file doesn't exist, 1 if the hub can't be reached.
    """
    log.info("tokenizer: fetching that of %s from the hub", name)
    try:
        with _quiet():
            path = Path(huggingface_hub.hf_hub_download(name, "tokenizer.json"))
            try:
                huggingface_hub.hf_hub_download(name, "tokenizer_config.json")
            except EntryNotFoundError:
                log.debug("%s has no tokenizer_config.json", name)
            return path
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"data.tokenizer.hub_name={name}: can't reach the hub. Is there a network? Write data.tokenizer.file=PATH, "
            "or neither, to train a tokenizer on the source",
            exit_status=1,
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, ValueError) as error:
        raise DataError(f"data.tokenizer.hub_name={name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def shuffle_shards(dataset: IterableDataset, order: tuple[int, int]) -> IterableDataset:
    """``dataset`` with its shards permuted by ``order`` = (seed, epoch), rows in their order within a shard.

    A buffer of one row and of one shard holds nothing, so the position stays exact.
    """
    return dataset.shuffle(generator=np.random.default_rng(order), buffer_size=1, max_buffer_input_shards=1)


class _Unreadable(Exception):
    """The rest of a file of a data set can't be read; the message says why."""


def _next_file(state: State) -> State | None:
    """The position in a data set at the beginning of the file behind that of ``state``; None if it names no file."""
    if "shard_idx" in state:
        return {**state, "shard_idx": state["shard_idx"] + 1, "shard_example_idx": 0}
    inner = state.get("examples_iterable")
    behind = _next_file(inner) if isinstance(inner, dict) else None
    if behind is None:
        return None
    # Where datasets cuts tables into rows, it counts from the place before the table.
    counts = {"previous_state": None, "num_chunks_since_previous_state": 0, "cropped_chunk_length": 0}
    return {**state, **{key: value for key, value in counts.items() if key in state}, "examples_iterable": behind}


class HubStream:
    """A :class:`~smet_train.data.documents.DocumentStream` over a data set of the hub; the position is datasets' own.

    Args:
        make: a fresh data set, in the order of the pass.
        field: the column with the text, among ``columns``.
        name: the data set, for messages.
        state: of an earlier stream over the same data set in the same order, to go on after it.
    """

    def __init__(
        self,
        make: Callable[[], IterableDataset],
        *,
        field: str,
        columns: Sequence[str],
        name: str,
        rules: ReadRules,
        told: set[str],
        state: State | None,
    ) -> None:
        self._make = make
        self._field = field
        self._columns = columns
        self._name = name
        self._longest_bytes = rules.max_document_bytes
        self._tally = Tally(rules, told, (state["good"], state["bad"]) if state else (0, 0))
        self._retries = Retries(rules.retries)
        self._at: State | None = state["at"] if state else None  # after the last document that was given
        # Rows before that place, blank ones too; states of earlier versions have no count of those.
        self._row: int = state.get("row", state["good"] + state["bad"]) if state else 0
        self._open()

    def __iter__(self) -> "HubStream":
        return self

    def __next__(self) -> str:
        while True:
            place = f"row {self._row + 1}"
            try:
                row = self._next_row()
            except _Unreadable as error:
                self._pass_over_file(Fault(f"from {place} on", str(error)))
                continue
            content = checked(row.get(self._field), self._field, self._columns, place, self._longest_bytes)
            text = self._tally.taken(content, self._name)
            self._at, self._row = self._dataset.state_dict(), self._row + 1
            if text is not None:
                return text

    def state_dict(self) -> State:
        """Where the next row is: datasets' own position, with the counts of rows, and of good and bad documents."""
        return {"at": self._at, "row": self._row, "good": self._tally.good, "bad": self._tally.bad}

    @property
    def bad(self) -> int:
        """Documents left out so far in this pass."""
        return self._tally.bad

    @property
    def place(self) -> tuple[str, str]:
        """Where the last document came from: the data set, and its row there."""
        return self._name, f"row {self._row}"

    def end(self) -> None:
        """Wait for no further try: a read that fails from now on raises at once. For another thread."""
        self._retries.end()

    def _open(self) -> None:
        self._dataset = self._make()
        if self._at is not None:
            self._dataset.load_state_dict(self._at)
        self._rows = iter(self._dataset)

    def _pass_over_file(self, fault: Fault) -> None:
        """Go on in the file behind the one that can't be read further.

        Raises:
            DataError: if ``fault`` may not be passed over.
        """
        behind = _next_file(self._dataset.state_dict())
        if behind is None:
            raise DataError(f"can't read {fault.of(self._name)}")
        self._tally.note(self._name, fault)
        self._at = behind
        self._open()

    def _next_row(self) -> dict[str, Any]:
        while True:
            try:
                row: dict[str, Any] = next(self._rows)
            except StopIteration:
                raise
            except Exception as error:  # the boundary to datasets, fsspec and pyarrow, each with its own exceptions
                if _is_content(error):
                    raise _Unreadable(f"{type(error).__name__}: {_one_line(error)}") from error
                self._retries.wait(self._name, error)
                self._open()
                continue
            self._retries.worked()
            return row
