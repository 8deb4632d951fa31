"""Tokenizers: a byte-level BPE trained on the source, or one loaded from a file or the hub."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from smet_train import opening
from smet_train.data import cache
from smet_train.data.encoder import encoder_of, unknown_share, without_dropout
from smet_train.data.files import human_bytes
from smet_train.data.rules import Fault
from smet_train.data.sources import Source
from smet_train.data.split import advice_on_documents, is_validation
from smet_train.errors import DataError

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # every byte and the end-of-text token
# Tried in this order where no tokenizer_config.json says which it is.
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
_FORMAT = "byte-level BPE 1"
_SAMPLED_CHARACTERS = 200_000  # of the source, in which unknown ones are counted
_TOLD_SHARE = 0.01
# The time that a trainer takes grows with the square of the longest word; no word of any language is as long.
_LONGEST_WORD = 1000
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_WORD},}}|\s{{{_LONGEST_WORD},}}")


# Of the interpreter and the machine, not of a text.
_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)
# Letters of scripts that few vocabularies hold all of: what becomes of them becomes of whatever a vocabulary lacks.
_RARE_LETTERS = "\u00e9\u0416\u05d0\u0e01\u10d0\u3042\u6f22\uac00\U00010348\u169b"


def _hash(tokenizer: Tokenizer, eos_token: str) -> str:
    return hashlib.sha256(f"{eos_token}\0{tokenizer.to_str()}".encode()).hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class TextTokenizer:
    """Text to token ids and back. No special token is ever read from text or added but by the packing: what adds some
    in the hands of others, the post-processor, is left out, so that what is saved makes the same ids there.

    Attributes:
        vocab_size: one more than the largest id.
        eos_token, eos_id: the token that ends each document, and its id.
        content_hash: SHA-256 (hex) of the tokenizer and its end-of-text token; equal after saving and loading.
        encoding_hash: that of what encodes, which is another where texts may spell a special token.
        given_hash: that of the tokenizer as it was given, with a dropout that is switched off here.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # A document that spells "<|endoftext|>" gets the characters, not the token.
        tokenizer.encode_special_tokens = True
        self.given_hash: str = _hash(tokenizer, eos_token)
        without_dropout(tokenizer)
        if tokenizer.post_processor is not None:
            tokenizer.post_processor = None
        self._tokenizer = tokenizer
        self._encoder = encoder_of(tokenizer, eos_token)
        self.eos_token = eos_token
        eos_id = tokenizer.token_to_id(eos_token)
        assert eos_id is not None  # every caller has looked it up
        self.eos_id: int = eos_id
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.content_hash: str = _hash(tokenizer, eos_token)
        self.encoding_hash: str = _hash(self._encoder, eos_token)

    @classmethod
    def from_file(cls, path: Path) -> "TextTokenizer":
        """Load a ``tokenizer.json``, or the one in the folder ``path``.

        Raises:
            DataError: if it can't be read, or has no end-of-text token.
        """
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.exists():
            raise DataError(f"data.tokenizer.file={path} doesn't exist")
        try:
            tokenizer = Tokenizer.from_str(opening.read_text(path, opening.LARGEST_TOKENIZER))
        except OSError as error:
            raise DataError(f"data.tokenizer.file={path} can't be read ({error.strerror})") from error
        except Exception as error:  # tokenizers raises Exception itself
            raise DataError(f"data.tokenizer.file={path} is not a tokenizer.json: {opening.what(error)}") from error
        return cls(tokenizer, _end_of_text(tokenizer, path))

    @classmethod
    def from_json(cls, text: str, eos_token: str) -> "TextTokenizer":
        """Of what :meth:`to_json` gives, and the token that ends each document."""
        return cls(Tokenizer.from_str(text), eos_token)

    def is_of(self, content_hash: str) -> bool:
        """Whether ``content_hash`` is of this tokenizer, or of it as given, as versions before took it."""
        return content_hash in (self.content_hash, self.given_hash)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without any special token.

        Raises:
            DataError: if the tokenizer has none for it.
        """
        ids = self.encode_each([text])[0]
        if isinstance(ids, Fault):
            raise DataError(
                f"{text[:40]!r}: {ids.reason}; write a text without such letters, or take another tokenizer"
            )
        return ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; in parallel, and other threads run meanwhile."""
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_each(self, texts: Sequence[str]) -> list["list[int] | Fault"]:
        """Ids of each text, or why the tokenizer has none for it."""
        try:
            return list(self.encode_many(texts))
        except _OURS:
            raise
        except BaseException as error:  # tokenizers raises Exception itself, and what Rust panics by is none
            if len(texts) == 1:
                return [Fault("", f"the tokenizer can't encode it ({_one_line(error)})")]
        return [self.encode_each([text])[0] for text in texts]

    def unknown_share(self, texts: list[str]) -> tuple[float, float]:
        """Fractions of the characters of ``texts`` that are unknown, and that are left out without a token."""
        return unknown_share(self._encoder, texts)

    def measure(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of ``text``, the end-of-text token last, and for each the UTF-8 bytes of ``text`` that it stands for.

        The bytes of any first ids together are those of the text up to the last character that they complete; of all
        ids, those of the whole text. So what a tokenizer replaces, leaves out or can't spell counts with its true
        bytes, and a character whose bytes are several tokens' counts with the last of them.
        """
        encoding = self._encoder.encode(text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets] + [len(text)]
        sizes = [0, *accumulate(len(character.encode("utf-8", "surrogatepass")) for character in text)]
        # After each token: the first character that a later one has a part in, and how far those so far have come.
        begun = list(accumulate(reversed(starts), min))[::-1][1:]
        reached = accumulate((end for _, end in encoding.offsets), max)
        ends = [0, *(sizes[min(pair)] for pair in zip(reached, begun, strict=True)), sizes[-1]]
        return [*encoding.ids, self.eos_id], [end - before for before, end in pairwise(ends)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens spelled out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def pieces(self) -> "TextPieces":
        """For text whose tokens come one by one."""
        return TextPieces(self._tokenizer)

    def to_json(self) -> str:
        """The content of its ``tokenizer.json``."""
        return str(self._tokenizer.to_str(pretty=True))

    def save(
        self, folder: Path, write: Callable[[Path, str], object] = _write_utf8, *, for_others: bool = False
    ) -> None:
        """Write ``tokenizer.json`` into ``folder``, and the ``tokenizer_config.json`` that names its end of text.

        The folder then loads with ``from_file`` and with transformers' ``AutoTokenizer``, which makes the same ids;
        ``for_others``: also of texts that spell a special token which is a word or piece of the model.
        """
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        }
        write(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        write(folder / "tokenizer.json", str(self._encoder.to_str(pretty=True)) if for_others else self.to_json())


class TextPieces:
    """Text of tokens that come one by one; a character whose bytes are several tokens' is given when it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """The text that ``token`` completes; "" if there is none yet."""
        piece = self._stream.step(self._tokenizer, token)
        self._held = [*self._held, token] if piece is None else []
        return piece or ""

    def end(self) -> str:
        """What was held back and has remained incomplete."""
        held, self._held = self._held, []
        return str(self._tokenizer.decode(held, skip_special_tokens=False))


def load_tokenizer(file: str | None, hub_name: str | None) -> TextTokenizer | None:
    """The tokenizer of ``file`` or ``hub_name``; None if neither is given.

    Raises:
        DataError: if it can't be loaded, or if both are given.
    """
    if file is not None and hub_name is not None:
        raise DataError("data.tokenizer.file and data.tokenizer.hub_name are both given; set one of them to null")
    if file is not None:
        loaded = TextTokenizer.from_file(Path(file).expanduser())
        log.info("tokenizer: %s, %d tokens", file, loaded.vocab_size)
        _tell_of_unknown_letters(loaded)
        return loaded
    if hub_name is not None:
        from smet_train.data.hub import fetch_tokenizer  # with it comes datasets, which takes most of a second

        loaded = TextTokenizer.from_file(fetch_tokenizer(hub_name))
        log.info("tokenizer: %s from the hub, %d tokens", hub_name, loaded.vocab_size)
        _tell_of_unknown_letters(loaded)
        return loaded
    return None


def _tell_of_unknown_letters(tokenizer: TextTokenizer) -> None:
    """Say so if a letter that the vocabulary lacks makes a text bad, or is left out of it."""
    encoded = dict(zip(_RARE_LETTERS, tokenizer.encode_each(list(_RARE_LETTERS)), strict=True))
    failing = [letter for letter, ids in encoded.items() if isinstance(ids, Fault)]
    dropped = [letter for letter, ids in encoded.items() if ids == []]
    if failing:
        log.warning(
            "tokenizer: it has no token for what its vocabulary lacks, such as %s: a document that holds such a letter "
            "is a bad one (see data.on_bad). Give its model an unk_token (Unigram: unk_id) or byte_fallback, or leave "
            "data.tokenizer out to train one that knows every byte",
            " ".join(failing),
        )
    if dropped:
        log.warning(
            "tokenizer: it leaves out what its vocabulary lacks, such as %s. Give its model an unk_token or "
            "byte_fallback, or leave data.tokenizer out to train one that knows every byte",
            " ".join(dropped),
        )


def _tell_of_unknown_share(tokenizer: TextTokenizer, source: Source) -> None:
    """Say so if the vocabulary lacks much of the source's first documents."""
    if not any(tokenizer.unknown_share(list(_RARE_LETTERS))):
        return
    texts: list[str] = []
    for document in source.documents():
        texts.append(document[:_SAMPLED_CHARACTERS])
        if sum(map(len, texts)) >= _SAMPLED_CHARACTERS:
            break
    shares = tokenizer.unknown_share(texts)
    for share, what in zip(shares, ("unknown to it: no model learns them", "left out by it"), strict=True):
        if share >= _TOLD_SHARE:
            log.warning(
                "tokenizer: %.1f %% of the characters of the first %d documents are %s; take a tokenizer that was "
                "trained on such text, or leave data.tokenizer out to train one on it",
                100 * share,
                len(texts),
                what,
            )


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
    """The tokenizer of ``file`` or ``hub_name``, or else one of ``vocab_size`` trained on the source.

    It is trained on the first ``train_bytes`` bytes of the source's training documents, and cached by them.

    Raises:
        DataError: if it can't be loaded, if both are given, if ``vocab_size`` is below 257, or if there is no text.
    """
    loaded = load_tokenizer(file, hub_name)
    if loaded is not None:
        _tell_of_unknown_share(loaded, source)
        return loaded
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"data.tokenizer.vocab_size={vocab_size} is too small: {MIN_VOCAB_SIZE} is the least, for every byte and "
            "the end-of-text token"
        )
    trained = _trained(_training_text(source, train_bytes, validation_fraction), vocab_size, cache_dir / "tokenizers")
    if trained.vocab_size < vocab_size:
        log.warning(
            "data.tokenizer.vocab_size=%d, but the text that trains the tokenizer gives no more than %d tokens: "
            "that is the model's vocabulary",
            vocab_size,
            trained.vocab_size,
        )
    return trained


def _training_text(source: Source, train_bytes: int, validation_fraction: float) -> list[str]:
    texts: list[str] = []
    left_bytes, n_documents = train_bytes, 0
    for document in source.documents():
        n_documents += 1
        if is_validation(document, validation_fraction):
            continue
        content = document.encode("utf-8", "surrogatepass")
        texts.append(document if len(content) <= left_bytes else content[:left_bytes].decode("utf-8", "ignore"))
        left_bytes -= len(content)
        if left_bytes <= 0:
            break
    if not texts:
        raise DataError(
            f"{source.name}: all {n_documents:,} documents fall into the validation split of "
            f"data.validation_fraction={validation_fraction}; {advice_on_documents(n_documents) or 'lower it'}"
        )
    return texts


def _trained(texts: list[str], vocab_size: int, folder: Path) -> TextTokenizer:
    digest = hashlib.sha256(f"{_FORMAT}\0{vocab_size}".encode())
    for text in texts:
        digest.update(b"\0text\0" + text.encode("utf-8", "surrogatepass"))
    key = digest.hexdigest()[:32]
    cached = _cached(folder, key)
    if cached is not None:
        return cached
    size = human_bytes(sum(len(text.encode("utf-8", "surrogatepass")) for text in texts))
    log.info("tokenizer: training a byte-level BPE of %d tokens on %s of the source", vocab_size, size)
    tokenizer = TextTokenizer(_train(texts, vocab_size), END_OF_TEXT)
    # The name holds the hash of the content, so that damage shows.
    path = folder / f"{key}-{tokenizer.content_hash[:16]}.json"
    cache.store(path, lambda part: part.write_text(tokenizer.to_json(), encoding="utf-8"))
    return tokenizer


def _cached(folder: Path, key: str) -> TextTokenizer | None:
    for path in folder.glob(f"{key}-*.json"):
        try:
            tokenizer = TextTokenizer(Tokenizer.from_file(str(path)), END_OF_TEXT)
        except Exception as error:  # tokenizers raises Exception itself
            log.warning("tokenizer: the cached %s is damaged (%s); training it again", path, error)
            continue
        if path.stem != f"{key}-{tokenizer.content_hash[:16]}":
            log.warning("tokenizer: the cached %s has been changed; training it again", path)
            continue
        log.info("tokenizer: %d tokens, from the cache %s", tokenizer.vocab_size, path)
        return tokenizer
    return None


def _train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; deterministic in ``texts`` and ``vocab_size``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    cuts = 0
    pieces: list[str] = []
    for text in texts:
        places = _cuts(text, tokenizer.pre_tokenizer)
        cuts += len(places)
        pieces += [text[begin:end] for begin, end in pairwise([0, *places, len(text)])]
    if cuts:
        log.warning(
            "tokenizer: %d cuts in runs of more than %s letters, digits, signs or spaces, which take too long to train "
            "on in one piece; see whether the data are the text that is meant",
            cuts,
            f"{_LONGEST_WORD:,}",
        )
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def _cuts(text: str, words: pre_tokenizers.PreTokenizer) -> list[int]:
    """Where ``text`` is cut so that none of the ``words`` in it is longer than 1000 characters."""
    places: list[int] = []
    for run in _LONG_RUN.finditer(text):
        # The space before a word belongs to it.
        begin = max(0, run.start() - 1)
        for _, (first, end) in words.pre_tokenize_str(text[begin : run.end()]):
            places += range(begin + first + _LONGEST_WORD, begin + end, _LONGEST_WORD)
    return places


def _end_of_text(tokenizer: Tokenizer, path: Path) -> str:
    """The end-of-text token: that of tokenizer_config.json beside ``path``, or else a known one of the vocabulary."""
    settings = path.with_name("tokenizer_config.json")
    if settings.exists():
        try:
            named = opening.read_object(settings).get("eos_token")
        except OSError as error:
            raise DataError(f"{settings} can't be read ({error.strerror})") from error
        except ValueError as error:
            raise DataError(f"{settings} is not a JSON object: {error}") from error
        # transformers writes a token as its text or as an object with its properties.
        named = named.get("content") if isinstance(named, dict) else named
        if named is not None:
            if not isinstance(named, str):
                raise DataError(f"{settings}: its eos_token is {str(named)[:80]}, not a text")
            if tokenizer.token_to_id(named) is None:
                raise DataError(f"{settings}: its eos_token {named!r} is not in the vocabulary of {path}")
            return str(named)
    for known in _KNOWN_ENDS:
        if tokenizer.token_to_id(known) is not None:
            return known
    raise DataError(
        f"data.tokenizer: {path} has none of the usual end-of-text tokens ({', '.join(_KNOWN_ENDS)}); put a "
        'tokenizer_config.json with {"eos_token": "…"} beside it'
    )
