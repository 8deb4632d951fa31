"""Windows hold every token of a text once, and as many bytes as the text has."""

from collections.abc import Callable

import pytest

from smet_train.evaluation.windows import TextWindows, cut_windows
from smet_train.trained import Trained

TEXTS = ["Käse", "", "the model", "日本語 🎉 " * 20, "a"]


def ids_of(trained: Trained, documents: list[str]) -> list[int]:
    eos = trained.tokenizer.eos_id
    return [eos, *(token for text in documents for token in [*trained.tokenizer.encode(text), eos])]


@pytest.mark.parametrize("sequence_tokens", [1, 2, 7, 32, 10_000])
def test_every_token_is_a_target_once(trained: Trained, sequence_tokens: int) -> None:
    windows = TextWindows(TEXTS, trained.tokenizer, sequence_tokens, None)
    given = list(windows)
    ids = ids_of(trained, TEXTS)
    assert [token for window in given for token in window[1:]] == ids[1:]
    assert [window[0] for window in given] == ids[:-1:sequence_tokens]
    assert all(len(window) == sequence_tokens + 1 for window in given[:-1])
    assert windows.tokens == len(ids) - 1
    assert windows.documents == len(TEXTS)
    assert windows.text_bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("max_tokens", [1, 2, 31, 32, 33, 64, 100])
def test_a_limit_cuts_the_last_window(trained: Trained, documents: Callable[..., list[str]], max_tokens: int) -> None:
    texts = documents(20)
    windows = TextWindows(texts, trained.tokenizer, 32, max_tokens)
    given = list(windows)
    assert windows.tokens == max_tokens
    assert [token for window in given for token in window[1:]] == ids_of(trained, texts)[1 : max_tokens + 1]
    begun = trained.tokenizer.decode(ids_of(trained, texts)[1 : max_tokens + 1]).removesuffix("\ufffd")
    assert windows.text_bytes == len(begun.replace(trained.tokenizer.eos_token, "").encode())
    assert cut_windows(TextWindows(texts, trained.tokenizer, 32, None), max_tokens) == given
