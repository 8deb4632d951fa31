"""What is fetched from the Hugging Face hub, and how its failures read."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from smet_train.errors import DataError

log = logging.getLogger(__name__)

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
