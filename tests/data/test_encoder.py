"""What a text spells is no special token, no ids are drawn by chance, and what a vocabulary lacks is told."""

import json
import logging
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from smet_train.data import tokenizer as tokenizer_module
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer

END = "</s>"
WORDS = [END, "a", "b", "ab", "<", "/", "s", ">", "<unk>"]
VOCABULARY = {word: number for number, word in enumerate(WORDS)}
MODELS: dict[str, Callable[[], models.Model]] = {
    "BPE": lambda: models.BPE(vocab=VOCABULARY, merges=[("a", "b")], unk_token="<unk>"),
    "BPE of whole words": lambda: models.BPE(vocab=VOCABULARY, merges=[], unk_token="<unk>", ignore_merges=True),
    "Unigram": lambda: models.Unigram([(word, -float(number)) for number, word in enumerate(WORDS)], unk_id=8),
    "WordLevel": lambda: models.WordLevel(vocab=VOCABULARY, unk_token="<unk>"),
    "WordPiece": lambda: models.WordPiece(vocab=VOCABULARY, unk_token="<unk>"),
}
PRE: dict[str, Callable[[], pre_tokenizers.PreTokenizer | None]] = {
    "none": lambda: None,
    "spaces": pre_tokenizers.WhitespaceSplit,
    "metaspace": pre_tokenizers.Metaspace,
    "punctuation": pre_tokenizers.BertPreTokenizer,
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
}


def made(model: str, pre: str, added: bool | None) -> Tokenizer:
    """``added``: how the end of text is among the added tokens; None: it is a word of the model alone."""
    tokenizer = Tokenizer(MODELS[model]())
    pre_tokenizer = PRE[pre]()
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if added is not None:
        token = AddedToken(END, special=added, normalized=False)
        (tokenizer.add_special_tokens if added else tokenizer.add_tokens)([token])
    return tokenizer


KINDS = list(product(MODELS, PRE, [None, True, False]))


@pytest.mark.parametrize(("model", "pre", "added"), KINDS)
def test_a_text_that_spells_the_end_of_text_does_not_end(model: str, pre: str, added: bool | None) -> None:
    tokenizer = TextTokenizer(made(model, pre, added), END)
    for text in (END, f"a {END} b", f"a{END}b", f"{END}{END}", f"a\n{END}", f"<{END}", "</s</s>"):
        assert tokenizer.eos_id not in tokenizer.encode(text), text


@settings(deadline=None, max_examples=30)
@given(text=st.text(alphabet="ab</s> \n\u00e9"))
def test_other_texts_have_the_ids_that_they_had(text: str) -> None:
    for model, pre, added in KINDS:
        before = made(model, pre, added)
        ids = before.encode(text.replace(END, "ab"), add_special_tokens=False).ids
        assert TextTokenizer(before, END).encode(text.replace(END, "ab")) == ids


def test_one_that_no_text_can_spell_to_its_end_is_used_as_it_is(tokenizer: TextTokenizer) -> None:
    assert tokenizer._encoder is tokenizer._tokenizer
    assert tokenizer.encoding_hash == tokenizer.content_hash == tokenizer.given_hash


def test_the_saved_tokenizer_is_the_given_one(tmp_path: Path) -> None:
    given_one = made("Unigram", "metaspace", True)
    tokenizer = TextTokenizer(Tokenizer.from_str(given_one.to_str()), END)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(given_one.to_str())
    again = TextTokenizer.from_file(tmp_path)
    assert again.content_hash == tokenizer.content_hash
    assert again.encode(f"a {END} b") == tokenizer.encode(f"a {END} b")
    assert tokenizer.encoding_hash != tokenizer.content_hash


def test_a_normalizer_makes_no_end_of_text_either() -> None:
    tokenizer = made("Unigram", "spaces", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ids = TextTokenizer(tokenizer, END).encode("a \uff1c/S> b </S>")
    assert 0 not in ids
    assert len(ids) > 2


def test_the_unknown_token_may_be_spelled() -> None:
    tokenizer = made("WordLevel", "spaces", True)
    tokenizer.add_special_tokens(["<unk>"])
    assert TextTokenizer(tokenizer, END).encode("a <unk> b") == [1, 8, 2]


def test_an_end_of_text_of_one_character_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"|": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    TextTokenizer(tokenizer, "|")
    assert "a text that holds '|' has a special token there" in caplog.text


def test_signs_of_patterns_in_a_token_are_cut_as_they_are() -> None:
    words = ["<|end (of) [t].*+?|>", "a", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel(vocab={word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("_"), "removed")
    assert TextTokenizer(tokenizer, words[0]).encode(f"a_{words[0]}_a") == [1, 2, 2, 1]


def test_dropout_is_switched_off_and_told(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    drops = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[("a", "b")], unk_token="<unk>", dropout=0.5))
    sure = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[("a", "b")], unk_token="<unk>"))
    given_json = drops.to_str()
    tokenizer = TextTokenizer(drops, END)
    assert "its dropout of 0.5 is switched off" in caplog.text
    assert [tokenizer.encode("abab") for _ in range(20)] == [[3, 3]] * 20
    assert tokenizer.content_hash == TextTokenizer(sure, END).content_hash
    assert json.loads(tokenizer.to_json())["model"]["dropout"] is None

    # A run of an earlier version, whose position has the hash of the tokenizer with its dropout, goes on.
    def fresh() -> TokenWindows:
        given_one = TextTokenizer(Tokenizer.from_str(given_json), END)
        return TokenWindows(source, given_one, sequence_tokens=7, seed=1, shuffle_documents=3, validation_fraction=0.1)

    stream = fresh()
    state = stream.state_dict()
    state["identity"]["tokenizer"] = tokenizer.given_hash
    assert tokenizer.given_hash != tokenizer.content_hash
    assert [tokenizer.is_of(known) for known in (tokenizer.given_hash, tokenizer.content_hash, "0")] == [
        True,
        True,
        False,
    ]
    stream.load_state_dict(state)
    assert next(stream) == next(fresh())


def prepared(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "a.txt").write_text(text)
    prepare_tokenizer(
        open_source(SourceSpec("text", files=(str(folder / "a.txt"),))),
        file=str(folder),
        hub_name=None,
        vocab_size=300,
        train_bytes=1000,
        validation_fraction=0.1,
        cache_dir=folder,
    )


@pytest.mark.parametrize(
    ("model", "text", "told"),
    [
        ("BPE", "ab" * 45 + "z" * 10, "10.0 % of the characters of the first 1 documents are unknown to it"),
        ("Unigram", "ab" * 45 + "z" * 10, "10.0 % of the characters of the first 1 documents are unknown to it"),
        ("WordLevel", "ab " * 9 + "zab", "10.0 % of the characters of the first 1 documents are unknown to it"),
        ("BPE", "ab" * 400 + "z", None),
    ],
)
def test_the_share_of_unknown_characters_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: str, text: str, told: str | None
) -> None:
    tokenizer = made(model, "spaces", True)
    prepared(tmp_path, tokenizer, text)
    assert ("%" in caplog.text) == (told is not None)
    assert told is None or told in caplog.text


def test_the_share_of_characters_that_are_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={END: 0, "a": 1, "b</w>": 2}, merges=[], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    prepared(tmp_path, tokenizer, "aAaaaaab\u00e9z")
    assert "20.0 % of the characters of the first 1 documents are left out by it" in caplog.text


def test_a_text_without_any_ids_is_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared(tmp_path, Tokenizer(models.WordLevel(vocab={END: 0, "a": 1})), "zz")
    assert "100.0 % of the characters of the first 1 documents are unknown to it" in caplog.text


@settings(deadline=None)
@given(text=st.text(alphabet="ab1. \n\u00e9"))
def test_words_are_cut_where_they_are_too_long_and_nowhere_else(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_LONGEST_WORD", 5)
        patch.setattr(tokenizer_module, "_LONG_RUN", re.compile(r"\S{5,}|\s{5,}"))
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        places = tokenizer_module._cuts(text, words)
    spans = [span for _, span in words.pre_tokenize_str(text)]
    expected = {place for begin, end in spans for place in range(begin + 5, end, 5)}
    at_ends = {end for _, end in spans}
    assert set(places) - at_ends == expected
    assert places == sorted(set(places))


def test_a_run_of_letters_is_trained_on_in_pieces_and_told(caplog: pytest.LogCaptureFixture) -> None:
    run = "acgt" * 10_000
    tokenizer = tokenizer_module._train([f"some words {run} and others"], 300)
    assert "40 cuts in runs of more than 1,000 letters" in caplog.text
    assert tokenizer.decode(tokenizer.encode(run).ids) == run


def test_texts_without_such_runs_train_as_they_did(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    texts = ["a" * 999 + " " + "b" * 999, "1" * 999 + "x" * 500]
    assert not any(tokenizer_module._cuts(text, pre_tokenizers.ByteLevel(add_prefix_space=False)) for text in texts)
    tokenizer_module._train(texts, 300)
    assert not caplog.records
