"""Loss of a trained model on the text it was judged by, or on any other."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.build import split_probe
from smet_train.build_data import build_held_out, build_source
from smet_train.config.schema import Config
from smet_train.data.sources import Source
from smet_train.data.split import is_validation
from smet_train.errors import DataError
from smet_train.evaluation.windows import TextWindows, cut_windows
from smet_train.tracking.jsonl import read_events
from smet_train.train.evaluate import perplexity
from smet_train.train.step import token_loss
from smet_train.trained import Trained

log = logging.getLogger(__name__)

SPLITS = ("eval", "validation", "all")


@dataclass(frozen=True, slots=True)
class TextLoss:
    """A loss and what it is the mean of.

    Attributes:
        data: what was read, for a person.
        loss: nats a predicted token, each token with the same weight.
        text_bytes: UTF-8 bytes of the text itself, whatever its tokens spell; of a document that the last window cuts,
            those up to the last character that is whole.
        bits_per_byte: bits for all predicted tokens (end-of-text ones too), by ``text_bytes``.
        tokens: predicted tokens.
        last_window_tokens: those of the last window, where it is shorter than ``sequence_tokens``; else 0.
    """

    data: str
    fingerprint: str
    split: str
    sequence_tokens: int
    batch_size: int
    windows: int
    last_window_tokens: int
    tokens: int
    text_bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class _Sum:
    """A loss over windows that were counted."""

    loss: float
    tokens: int
    windows: int
    last_window_tokens: int


def text_loss(
    trained: Trained,
    *,
    split: str,
    data: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> TextLoss:
    """The loss of ``trained`` on a text, in windows of the run's sequence length and in its precision.

    Args:
        split: ``eval``: the windows of the run's own evaluations, full ones alone; ``validation``: all held-out
            documents; ``all``: all documents.
        data: fields of the data settings that differ from the run's, where other data are read.
        max_tokens: predicted tokens, of the first documents.
        batch_size: windows computed at once; None = as in the run, so that its own loss comes out to the last digit.
        progress: told the predicted tokens after each batch.

    Raises:
        DataError: if the source can't be read or has no text of this split.
    """
    config = replace(trained.config, data=replace(trained.config.data, **(data or {})))
    source = build_source(config)
    windows: Iterable[list[int]]
    if split == "eval":
        held_out = build_held_out(config, source, trained.tokenizer)
        windows = cut_windows(split_probe(config, held_out.windows)[0].tolist(), max_tokens)
    else:
        documents = _documents(source, config.data.validation_fraction if split == "validation" else None)
        windows = TextWindows(documents, trained.tokenizer, config.data.sequence_tokens, max_tokens)
    batch_size = batch_size or config.train.micro_batch_size
    total = _mean(trained.model, windows, config, batch_size, progress)
    if total.tokens == 0:
        raise DataError(
            f"{source.name} has no document in its validation split, which data.validation_fraction="
            f"{config.data.validation_fraction} of them belong to; write --split all, or give more files"
        )
    size = windows.text_bytes if isinstance(windows, TextWindows) else held_out.text_bytes(total.tokens)
    return TextLoss(
        data=source.description,
        fingerprint=source.fingerprint,
        split=split,
        sequence_tokens=config.data.sequence_tokens,
        batch_size=batch_size,
        windows=total.windows,
        last_window_tokens=total.last_window_tokens,
        tokens=total.tokens,
        text_bytes=size,
        loss=total.loss,
        perplexity=perplexity(total.loss),
        bits_per_byte=total.loss * total.tokens / math.log(2) / max(1, size),
    )


def recorded_loss(trained: Trained) -> float | None:
    """The loss of the run's own last evaluation at this step, by its metrics.jsonl; None if there was none, or, with a
    warning, if the file can't be read."""
    path = trained.run_folder / "metrics.jsonl"
    try:
        events = read_events(path) if path.is_file() else []
    except (OSError, ValueError) as error:
        log.warning("the loss is not compared with the run's own: %s", error)
        return None
    losses = [event["loss"] for event in events if event.get("event") == "eval" and event["step"] == trained.step]
    return float(losses[-1]) if losses else None


def _documents(source: Source, validation_fraction: float | None) -> Iterator[str]:
    return (
        document
        for document in source.documents()
        if validation_fraction is None or is_validation(document, validation_fraction)
    )


@torch.no_grad()
def _mean(
    model: nn.Module,
    windows: Iterable[list[int]],
    config: Config,
    batch_size: int,
    progress: Callable[[int], object],
) -> _Sum:
    device = next(model.parameters()).device
    sequence_tokens = config.data.sequence_tokens
    total, weight, tokens, count, last = 0.0, 0.0, 0, 0, 0
    for batch_BT in _batches(windows, batch_size):
        n_windows, last = batch_BT.shape[0], batch_BT.shape[1] - 1
        # A full window weighs exactly 1, so full windows alone give the very digits of a run's evaluation.
        part = n_windows * (last / sequence_tokens)
        total += float(token_loss(model, batch_BT.to(device), config.train.precision.name)) * part
        weight += part
        count += n_windows
        tokens += n_windows * last
        progress(tokens)
    return _Sum(total / max(weight, 1e-9), tokens, count, 0 if last == sequence_tokens else last)


def _batches(windows: Iterable[list[int]], batch_size: int) -> Iterator[Tensor]:
    """(B, T + 1) ids; a window that is shorter than those before it comes alone."""
    for _, equal in groupby(windows, key=len):
        while rows := list(islice(equal, batch_size)):
            yield torch.tensor(rows, dtype=torch.int64)
