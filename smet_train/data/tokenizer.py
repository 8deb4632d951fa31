"""The tokenizer: byte-level BPE trained on the source, or one from a file or the hub."""

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smet_train.data.cache import write_atomically
from smet_train.data.sources import Source
from smet_train.data.split import is_validation
from smet_train.errors import DataError

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
_END_TOKENS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<end_of_turn>")
_FORMAT = "bpe-1"  # part of the cache key: a change of the training below makes old files unused


class TextTokenizer:
    """A ``tokenizers.Tokenizer`` with what training needs: its size, its end-of-text token, its identity.

    Raises:
        DataError: if none of the usual end-of-text tokens is in its vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        ends = [token for token in _END_TOKENS if token in vocabulary]
        if not ends:
            raise DataError(f"tokenizer {name}: has no end-of-text token; add one of {', '.join(_END_TOKENS)}")
        self.eos_id = vocabulary[ends[0]]
        self.content_hash = sha256(tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens around it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def save(self, path: Path) -> None:
        """Write it as a ``tokenizer.json`` that transformers reads too."""
        write_atomically(path, lambda beside: self._tokenizer.save(str(beside)))


def _from_file(path: Path) -> TextTokenizer:
    try:
        return TextTokenizer(Tokenizer.from_file(str(path)), str(path))
    except DataError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for a missing and for a malformed file
        raise DataError(
            f"data.tokenizer.file={path}: cannot be loaded: {error}; give a tokenizer.json of the tokenizers library"
        ) from error


def _from_hub(name: str) -> TextTokenizer:
    try:
        return TextTokenizer(Tokenizer.from_pretrained(name), name)
    except DataError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"data.tokenizer.hub_name={name}: cannot be loaded: {reason}; without a network leave it out, and one is "
            "trained on the data",
            exit_status=1,
        ) from error


def _training_texts(source: Source, train_bytes: int, validation_fraction: float) -> Iterator[str]:
    """Training documents in a fixed order until ``train_bytes`` of UTF-8 are reached."""
    total = 0
    for text in source.texts(source.epoch(0, 0)):
        if is_validation(text, validation_fraction):
            continue
        yield text
        total += len(text.encode("utf-8", "surrogatepass"))
        if total >= train_bytes:
            return


def _train(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prepare_tokenizer(
    source: Source,
    *,
    file: str | None,
    hub_name: str | None,
    vocab_size: int,
    train_bytes: int,
    validation_fraction: float,
    cache_dir: Path,
) -> TextTokenizer:
    """The tokenizer of a run: from ``file``, else from the hub, else trained on the source and kept in ``cache_dir``.

    A trained one is found again by the content that it was trained on, ``vocab_size`` and the code's format.

    Raises:
        DataError: if a named tokenizer can't be loaded, or the source holds no training text.
    """
    if file is not None:
        return _from_file(Path(file).expanduser())
    if hub_name is not None:
        return _from_hub(hub_name)
    texts = list(_training_texts(source, train_bytes, validation_fraction))
    if not any(text.strip() for text in texts):
        raise DataError(f"{source.description}: holds no text to train a tokenizer on")
    key = sha256(f"{_FORMAT}|{vocab_size}|".encode())
    for text in texts:
        key.update(text.encode("utf-8", "surrogatepass") + b"\0")
    path = cache_dir / "tokenizers" / f"{key.hexdigest()[:32]}.json"
    if path.is_file():
        try:
            return _from_file(path)
        except DataError:
            log.warning("%s is damaged; training the tokenizer again", path)
    log.info("training a tokenizer of %d tokens on %d documents", vocab_size, len(texts))
    tokenizer = TextTokenizer(_train(texts, vocab_size), "trained")
    if tokenizer.vocab_size < vocab_size:
        log.warning(
            "the text gives only %d different tokens, not data.tokenizer.vocab_size=%d",
            tokenizer.vocab_size, vocab_size,
        )  # fmt: skip
    tokenizer.save(path)
    return tokenizer
