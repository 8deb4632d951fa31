"""The fixed validation set: the first windows of the held-out documents."""

import hashlib
import logging
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smet_train.data import cache
from smet_train.data.sources import Source
from smet_train.data.split import is_validation
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
    identity = (_FORMAT, source.fingerprint, tokenizer.content_hash, sequence_tokens, windows, validation_fraction)
    path = cache_dir / "validation" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.npz"
    ids = _cached(path)
    if ids is None:
        ids = _held_out_ids(source, tokenizer, windows * sequence_tokens + 1, validation_fraction)
        _check_one_window(source, ids, sequence_tokens, validation_fraction)
        stored = ids
        cache.store(path, lambda part: _save(part, stored))
    full = (len(ids) - 1) // sequence_tokens
    log.info("validation: %d windows of %d tokens from held-out documents", full, sequence_tokens)
    return torch.from_numpy(ids.astype(np.int64)).unfold(0, sequence_tokens + 1, sequence_tokens).contiguous()


def _held_out_ids(source: Source, tokenizer: TextTokenizer, n_tokens: int, fraction: float) -> np.ndarray:
    """The first ``n_tokens`` ids of the held-out documents, or all; an end-of-text token first and after each."""
    ids = [tokenizer.eos_id]
    for document in source.documents():
        if is_validation(document, fraction):
            ids += [*tokenizer.encode(document), tokenizer.eos_id]
            if len(ids) >= n_tokens:
                break
    return np.array(ids[:n_tokens], dtype=np.int32)


def _check_one_window(source: Source, ids: np.ndarray, sequence_tokens: int, fraction: float) -> None:
    if len(ids) <= sequence_tokens:
        raise DataError(
            f"{source.name}: the documents held out by data.validation_fraction={fraction} have {len(ids) - 1} tokens, "
            f"not one window of data.sequence_tokens={sequence_tokens}; raise data.validation_fraction or use more data"
        )


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
