"""How many bytes of its text each token stands for, by hand and by theorem."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from smet_train.data.tokenizer import END_OF_TEXT, TextTokenizer


def own(
    model: models.Model,
    normalizer: normalizers.Normalizer | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
) -> TextTokenizer:
    made = Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens([END_OF_TEXT])
    return TextTokenizer(made, END_OF_TEXT)


def unigram(**changed: Any) -> TextTokenizer:
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5), ("fi", -1.0), (" ", -1.0)]
    return own(models.Unigram(pieces, 0, False), **changed)


def words() -> TextTokenizer:
    vocabulary = {"[UNK]": 0, "red": 1, "fox": 2}
    return own(models.WordLevel(vocabulary, "[UNK]"), normalizers.Lowercase(), pre_tokenizers.Whitespace())


@pytest.mark.parametrize(
    ("tokenizer", "text", "pieces", "sizes"),
    [
        # One token for what is unknown, with all its bytes.
        (unigram(), "ab日本b", ["ab", "<unk>", "b"], [2, 6, 1, 0]),
        # The ligature has three bytes, and is spelled with two letters.
        (unigram(normalizer=normalizers.NFKC()), "a\ufb01b", ["a", "fi", "b"], [1, 3, 1, 0]),
        # Blanks between words go with the next word, those at the end with the end.
        (words(), " Red  FOX é  ", ["red", "fox", "[UNK]"], [4, 5, 3, 2]),
        (unigram(), "", [], [0]),
    ],
)
def test_bytes_of_hand_counted_texts(tokenizer: TextTokenizer, text: str, pieces: list[str], sizes: list[int]) -> None:
    ids, found = tokenizer.measure(text)
    spelled = [tokenizer._tokenizer.id_to_token(token) for token in ids]
    assert spelled == [*pieces, END_OF_TEXT]
    assert found == sizes
    assert ids[:-1] == tokenizer.encode(text)


def test_letters_that_no_token_has_are_left_out_and_their_bytes_are_not() -> None:
    ids, sizes = own(models.BPE({"x": 0, "y": 1}, [])).measure("xéy€")
    assert (len(ids), sum(sizes)) == (3, len("xéy€".encode()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text())
def test_tokens_of_bytes_stand_for_the_characters_that_they_complete(tokenizer: TextTokenizer, text: str) -> None:
    """Each letter of a byte-level token is a byte: an oracle that knows nothing of places in the text."""
    text = text.encode("utf-8", "ignore").decode()
    ids, sizes = tokenizer.measure(text)
    assert ids == [*tokenizer.encode(text), tokenizer.eos_id]
    assert sum(sizes) == len(text.encode())
    whole = {0, *accumulate(len(character.encode()) for character in text)}
    reached = accumulate(len(tokenizer._tokenizer.id_to_token(token) or "") for token in ids[:-1])
    assert list(accumulate(sizes[:-1])) == [max(end for end in whole if end <= n_bytes) for n_bytes in reached]


def test_a_post_processor_that_trims_offsets_changes_nothing(
    tokenizer: TextTokenizer, documents: Callable[..., list[str]]
) -> None:
    trimmed = Tokenizer.from_str(tokenizer.to_json())
    trimmed.post_processor = processors.ByteLevel(trim_offsets=True)
    other = TextTokenizer(trimmed, END_OF_TEXT)
    for text in ["a  b \n\n c  ", *documents(3)]:
        assert other.measure(text) == tokenizer.measure(text)
