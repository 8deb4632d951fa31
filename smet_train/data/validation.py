"""The fixed windows of held-out text that a run is judged by."""

import logging
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smet_train.data.cache import write_atomically
from smet_train.data.sources import Source
from smet_train.data.split import is_validation
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError

log = logging.getLogger(__name__)


def _read(
    source: Source, tokenizer: TextTokenizer, sequence_tokens: int, windows: int, validation_fraction: float
) -> Tensor:
    wanted = windows * sequence_tokens + 1
    tokens: list[int] = []
    for text in source.texts(source.epoch(0, 0)):
        if text.strip() and is_validation(text, validation_fraction):
            tokens += [*tokenizer.encode(text), tokenizer.eos_id]
            if len(tokens) >= wanted:
                break
    found = min(windows, (len(tokens) - 1) // sequence_tokens)
    if found < 1:
        raise DataError(
            f"{source.description}: its validation split holds {len(tokens)} tokens, fewer than one window of "
            f"data.sequence_tokens={sequence_tokens}; give more text, raise data.validation_fraction="
            f"{validation_fraction}, or lower data.sequence_tokens"
        )
    return torch.tensor(tokens[: found * sequence_tokens + 1]).unfold(0, sequence_tokens + 1, sequence_tokens).clone()


def validation_windows(
    source: Source,
    tokenizer: TextTokenizer,
    *,
    sequence_tokens: int,
    windows: int,
    validation_fraction: float,
    cache_dir: Path,
) -> Tensor:
    """Up to ``windows`` windows of the validation split, int64 of shape (windows, sequence_tokens + 1).

    Kept in ``cache_dir`` under what they depend on, since a small split means reading much of the source.

    Raises:
        DataError: if the split does not fill one window.
    """
    facts = [source.fingerprint, tokenizer.content_hash, sequence_tokens, windows, validation_fraction]
    key = sha256("|".join(map(str, facts)).encode()).hexdigest()[:32]
    path = cache_dir / "validation" / f"{key}.safetensors"
    if path.is_file():
        try:
            return load_file(path)["windows"]
        except (SafetensorError, KeyError, OSError):
            log.warning("%s is damaged; reading the validation split again", path)
    found = _read(source, tokenizer, sequence_tokens, windows, validation_fraction)
    write_atomically(path, lambda beside: save_file({"windows": found}, beside))
    return found
