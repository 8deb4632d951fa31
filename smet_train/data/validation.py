"""The fixed validation set: the first windows of the held-out documents."""

import hashlib
import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smet_train.data import cache
from smet_train.data.rules import Fault, Tally
from smet_train.data.sources import Source
from smet_train.data.split import advice_on_documents, is_validation
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError

log = logging.getLogger(__name__)

_FORMAT = 1


def validation_windows(
    source: Source,
    tokenizer: TextTokenizer,
    *,
    sequence_tokens: int,
    windows: int,
    validation_fraction: float,
    cache_dir: Path,
) -> Tensor:
    """Windows (W, ``sequence_tokens + 1``) of int64 ids, W <= ``windows``, cut like the training windows.

    They hold the first held-out documents in the source's own order, whatever the seed. Reads until there are enough,
    at most once through the source.

    Raises:
        DataError: if the held-out documents don't fill one window, or can't be read.
    """
    if windows == 0:
        return torch.empty(0, sequence_tokens + 1, dtype=torch.int64)
    identity = (_FORMAT, source.fingerprint, tokenizer.encoding_hash, sequence_tokens, windows, validation_fraction)
    # The same files hold other documents for those who leave out bad or long ones.
    read = source.rules.on_bad, source.rules.max_document_bytes
    path = cache_dir / "validation" / f"{hashlib.sha256(repr((*identity, *read)).encode()).hexdigest()[:32]}.npz"
    ids = _cached(path) if source.is_known else None
    if ids is None:
        ids = _held_out_ids(source, tokenizer, windows * sequence_tokens + 1, validation_fraction, sequence_tokens)
        stored = ids
        if source.is_known:
            cache.store(path, lambda part: _save(part, stored))
    full = (len(ids) - 1) // sequence_tokens
    log.info("validation: %d windows of %d tokens from held-out documents", full, sequence_tokens)
    return torch.from_numpy(ids.astype(np.int64)).unfold(0, sequence_tokens + 1, sequence_tokens).contiguous()


def _held_out_ids(
    source: Source, tokenizer: TextTokenizer, n_tokens: int, fraction: float, sequence_tokens: int
) -> np.ndarray:
    """The first ``n_tokens`` ids of the held-out documents, or all; an end-of-text token first and after each."""
    ids, n_documents = [tokenizer.eos_id], 0
    documents, tally = source.documents(), Tally(source.rules, set())
    for document in documents:
        n_documents += 1
        if is_validation(document, fraction):
            encoded = tokenizer.encode_each([document])[0]
            if isinstance(encoded, Fault):
                file, place = documents.place
                tally.note(file, replace(encoded, place=place))
                continue
            tally.good += 1
            ids += [*encoded, tokenizer.eos_id]
            if len(ids) >= n_tokens:
                break
    if len(ids) <= sequence_tokens:
        raise DataError(
            f"{source.name}: of {n_documents:,} documents, those held out by data.validation_fraction={fraction} have "
            f"{len(ids) - 1} tokens, not one window of data.sequence_tokens={sequence_tokens}; "
            f"{advice_on_documents(n_documents) or 'raise data.validation_fraction or use more data'}"
        )
    return np.array(ids[:n_tokens], dtype=np.int32)


def _save(path: Path, ids: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, ids=ids)  # a zip file, so that its checksum guards the content


def _cached(path: Path) -> np.ndarray | None:
    try:
        with np.load(path) as stored:
            ids: np.ndarray = stored["ids"]
            return ids
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("validation: the cache %s is damaged (%s); making it again", path, error)
        return None
