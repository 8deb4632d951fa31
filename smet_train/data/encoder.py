"""What of a tokenizer encodes documents: without chance, and deaf to special tokens that a text spells."""

import json
import logging
import re

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

log = logging.getLogger(__name__)


def without_dropout(tokenizer: Tokenizer) -> None:
    """Switch off what makes ids of one text differ from time to time, and say so."""
    dropout = getattr(tokenizer.model, "dropout", None)
    if dropout:
        tokenizer.model.dropout = None
        log.warning(
            "tokenizer: its dropout of %g is switched off, by which a text had other tokens each time it was read",
            dropout,
        )


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """The token that stands for what the vocabulary lacks; None if there is none."""
    if isinstance(tokenizer.model, models.Unigram):
        model = json.loads(tokenizer.to_str())["model"]
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    named = getattr(tokenizer.model, "unk_token", None)
    return None if named is None or tokenizer.token_to_id(named) is None else str(named)


def encoder_of(tokenizer: Tokenizer, eos_token: str) -> Tokenizer:
    """A tokenizer of the same ids, in which no text has a special token for what it spells.

    That is ``tokenizer`` itself where it has none anyway, as those have whose special tokens are no words or pieces of
    their model. The unknown token may be spelled: corpora hold it in place of rare words.
    """
    spelled = _spelled(tokenizer, eos_token)
    if not spelled:
        return tokenizer
    encoder = Tokenizer.from_str(tokenizer.to_str())
    encoder.encode_special_tokens = True
    if eos_token in {token.content for token in encoder.get_added_tokens_decoder().values()}:
        encoder.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
    # A word or piece of the model never goes over a cut: one behind the first character of each.
    cut = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in spelled if len(token) > 1)
    if cut:
        split = pre_tokenizers.Split(Regex(cut), "merged_with_previous")
        first = tokenizer.pre_tokenizer
        encoder.pre_tokenizer = split if first is None else pre_tokenizers.Sequence([first, split])
    left = _spelled(encoder, eos_token)
    if left:
        log.warning(
            "tokenizer: a text that holds %s has a special token there; name tokens that no text holds",
            ", ".join(map(repr, left)),
        )
    return encoder


def _spelled(tokenizer: Tokenizer, eos_token: str) -> list[str]:
    """The special tokens that a text which spells them has."""
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special} | {eos_token}
    return sorted(token for token in special - {unknown_token(tokenizer)} if _is_spelled(tokenizer, token))


def _is_spelled(tokenizer: Tokenizer, token: str) -> bool:
    number = tokenizer.token_to_id(token)
    for text in (token, f"a{token}a", f"a {token} a"):
        try:
            if number in tokenizer.encode(text, add_special_tokens=False).ids:
                return True
        except Exception:  # tokenizers raises Exception itself; it has no ids for such a text at all
            continue
    return False


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, float]:
    """Fractions of the characters of ``texts`` that are unknown, and that are left out without a token.

    Texts that have no ids count as wholly unknown.
    """
    unknown = unknown_token(tokenizer)
    number = None if unknown is None else tokenizer.token_to_id(unknown)
    n_unknown = n_left_out = 0
    for text in texts:
        try:
            encoding = tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # tokenizers raises Exception itself
            n_unknown += len(text)
            continue
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        n_unknown += sum(end - begin for found, (begin, end) in spans if found == number)
        n_left_out += _left_out(tokenizer, text)
    total = max(1, sum(map(len, texts)))
    return n_unknown / total, n_left_out / total


def _left_out(tokenizer: Tokenizer, text: str) -> int:
    """Characters of ``text`` that a BPE without an unknown token passes over; other models have none."""
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.byte_fallback or unknown_token(tokenizer) is not None:
        return 0
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None:
        text = "".join(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    prefix, suffix = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""

    def is_known(character: str) -> bool:
        forms = (character, prefix + character, character + suffix, prefix + character + suffix)
        return any(model.token_to_id(form) is not None for form in forms)

    lacking = {character for character in set(text) if not is_known(character)}
    return sum(map(text.count, lacking))
