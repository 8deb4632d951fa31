"""What is fetched from the Hugging Face hub, and how its failures read."""

import logging
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from smet_train.data.documents import State
from smet_train.data.records import checked
from smet_train.data.retry import Retries
from smet_train.data.rules import ReadRules, Tally
from smet_train.errors import DataError

log = logging.getLogger(__name__)

# What a damaged file raises; anything else may be the network.
_BAD_CONTENT = (ValueError, EOFError, BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException)
_LOCAL_DATA = "data.source=python_source, text, jsonl and parquet need no network"


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


def open_hub(name: str, subset: str | None, split: str) -> IterableDataset:
    """A streaming data set of the hub (or of a local folder laid out like one).

    Raises:
        DataError: exit status 2 if there is no such data set, subset or split, 1 if the hub can't be reached.
    """
    log.info("data: opening %s on the hub", name)
    try:
        with _quiet():
            return load_dataset(name, subset, split=split, streaming=True)
    except DatasetNotFoundError as error:
        raise DataError(f"data.name={name}: {_one_line(error)}") from error
    except (FileNotFoundError, ValueError) as error:
        # ValueError lists the subsets or splits that exist.
        raise DataError(f"data.name={name} data.subset={subset} data.split={split}: {_one_line(error)}") from error
    except Exception as error:  # connections fail in too many ways to list
        raise DataError(
            f"data.name={name}: {_one_line(error)}. Is there a network? {_LOCAL_DATA}", exit_status=1
        ) from error


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
            row = self._next_row()
            place = f"row {self._row + 1}"
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

    def end(self) -> None:
        """Wait for no further try: a read that fails from now on raises at once. For another thread."""
        self._retries.end()

    def _open(self) -> None:
        self._dataset = self._make()
        if self._at is not None:
            self._dataset.load_state_dict(self._at)
        self._rows = iter(self._dataset)

    def _next_row(self) -> dict[str, Any]:
        while True:
            try:
                row: dict[str, Any] = next(self._rows)
            except StopIteration:
                raise
            except Exception as error:  # the boundary to datasets, fsspec and pyarrow, each with its own exceptions
                if isinstance(error, _BAD_CONTENT):
                    raise DataError(f"can't read {self._name}: {type(error).__name__}: {_one_line(error)}") from error
                self._retries.wait(self._name, error)
                self._open()
                continue
            self._retries.worked()
            return row
