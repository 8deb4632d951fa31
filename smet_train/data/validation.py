"""The fixed validation set: the first windows of the held-out documents."""

import hashlib
import logging
import zipfile
from dataclasses import dataclass, replace
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

_FORMAT = 2  # 1 had no bytes


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Windows (W, T + 1) of int64 ids, and of each of their targets the UTF-8 bytes of text that it stands for, (W, T).

    End-of-text tokens have what no other token of their document stands for; see :meth:`TextTokenizer.measure`.
    """

    windows: Tensor
    target_bytes: Tensor

    def text_bytes(self, n_targets: int) -> int:
        """Bytes of the first ``n_targets`` targets."""
        return int(self.target_bytes.flatten()[:n_targets].sum())


def held_out_windows(
    source: Source,
    tokenizer: TextTokenizer,
    *,
    sequence_tokens: int,
    windows: int,
    validation_fraction: float,
    cache_dir: Path,
) -> HeldOut:
    """At most ``windows`` windows of ``sequence_tokens + 1`` ids, cut like the training windows.

    They hold the first held-out documents in the source's own order, whatever the seed. Reads until there are enough,
    at most once through the source.

    Raises:
        DataError: if the held-out documents don't fill one window, or can't be read.
    """
    if windows == 0:
        return _cut(np.zeros((2, 0), np.int32), sequence_tokens)
    identity = (_FORMAT, source.fingerprint, tokenizer.encoding_hash, sequence_tokens, windows, validation_fraction)
    # The same files hold other documents for those who leave out bad or long ones.
    read = source.rules.on_bad, source.rules.max_document_bytes
    path = cache_dir / "validation" / f"{hashlib.sha256(repr((*identity, *read)).encode()).hexdigest()[:32]}.npz"
    tokens = _cached(path) if source.is_known else None
    if tokens is None:
        tokens = _first_tokens(source, tokenizer, windows * sequence_tokens + 1, validation_fraction, sequence_tokens)
        stored = tokens
        if source.is_known:
            cache.store(path, lambda part: _save(part, stored))
    found = _cut(tokens, sequence_tokens)
    log.info("validation: %d windows of %d tokens from held-out documents", len(found.windows), sequence_tokens)
    return found


def _cut(tokens: np.ndarray, sequence_tokens: int) -> HeldOut:
    """Full windows of ``tokens`` (2, N): ids and bytes."""
    ids, sizes = (torch.from_numpy(row.astype(np.int64)) for row in tokens)
    full = max(0, len(ids) - 1) // sequence_tokens
    if full == 0:
        return HeldOut(ids.new_empty(0, sequence_tokens + 1), sizes.new_empty(0, sequence_tokens))
    windows = ids.unfold(0, sequence_tokens + 1, sequence_tokens).contiguous()
    return HeldOut(windows, sizes[1 : full * sequence_tokens + 1].view(full, sequence_tokens))


def _first_tokens(
    source: Source, tokenizer: TextTokenizer, n_tokens: int, fraction: float, sequence_tokens: int
) -> np.ndarray:
    """The first ``n_tokens`` ids of the held-out documents, or all, and their bytes, (2, N); an end-of-text token first
    and after each."""
    ids, sizes, n_documents = [tokenizer.eos_id], [0], 0
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
            of_document, bytes_of_document = tokenizer.measure(document)
            ids += of_document
            sizes += bytes_of_document
            if len(ids) >= n_tokens:
                break
    if len(ids) <= sequence_tokens:
        raise DataError(
            f"{source.name}: of {n_documents:,} documents, those held out by data.validation_fraction={fraction} have "
            f"{len(ids) - 1} tokens, not one window of data.sequence_tokens={sequence_tokens}; "
            f"{advice_on_documents(n_documents) or 'raise data.validation_fraction or use more data'}"
        )
    return np.array([ids[:n_tokens], sizes[:n_tokens]], dtype=np.int32)


def _save(path: Path, tokens: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, tokens=tokens)  # a zip file, so that its checksum guards the content


def _cached(path: Path) -> np.ndarray | None:
    try:
        with np.load(path) as stored:
            tokens: np.ndarray = stored["tokens"]
            return tokens
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("validation: the cache %s is damaged (%s); making it again", path, error)
        return None
