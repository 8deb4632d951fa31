"""What is written is what transformers' own ``generate`` writes, shown as soon as its characters are whole."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smet_train.errors import ConfigError
from smet_train.evaluation.generate import Sampling, encode_prompt, generate_text, positions_of, room_for
from smet_train.trained import Trained

GREEDY = Sampling(max_tokens=20, temperature=0)


def pieces_of(trained: Trained, ids: Iterable[int]) -> list[str]:
    pieces = trained.tokenizer.pieces()
    return [*map(pieces.add, ids), pieces.end()]


@pytest.mark.parametrize("prompt", ["", "the model", "日本"])
def test_greedy_is_transformers_own(trained: Trained, prompt: str) -> None:
    ids = torch.tensor([[trained.tokenizer.eos_id, *trained.tokenizer.encode(prompt)]])
    model: Any = trained.model
    own = model.generate(
        ids, do_sample=False, max_new_tokens=20, eos_token_id=trained.tokenizer.eos_id, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    shown: list[str] = []
    written = generate_text(trained, encode_prompt(trained, prompt), GREEDY, 1, shown.append)
    assert written.text == trained.tokenizer.decode([token for token in own if token != trained.tokenizer.eos_id])
    assert written.tokens == len(own)
    assert "".join(shown) == written.text


def test_each_token_is_computed_once(trained: Trained) -> None:
    lengths: list[int] = []
    embeddings = trained.model.get_input_embeddings()  # type: ignore[operator]
    hook = embeddings.register_forward_hook(lambda _module, inputs, _output: lengths.append(inputs[0].shape[1]))
    try:
        ids = encode_prompt(trained, "the model")
        written = generate_text(trained, ids, GREEDY, 1, lambda _: None)
    finally:
        hook.remove()
    assert lengths == [ids.shape[1], *[1] * (written.tokens - 1)]


def test_the_same_seed_gives_the_same_text_and_another_one_another(trained: Trained) -> None:
    ids = encode_prompt(trained, "the")

    def text(seed: int, sampling: Sampling) -> str:
        return generate_text(trained, ids, sampling, seed, lambda _: None).text

    hot = Sampling(max_tokens=20, temperature=1.0, top_k=0)
    assert text(1, hot) == text(1, hot) != text(2, hot)
    assert text(1, replace(hot, top_k=1)) == text(2, replace(hot, top_p=1e-9)) == text(1, GREEDY)


def test_stops_at_the_end_of_text_and_does_not_show_it(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = encode_prompt(trained, "the")
    model: Any = trained.model
    own = model.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=None)[0, ids.shape[1] :].tolist()
    end = own[5]
    monkeypatch.setattr(trained.tokenizer, "eos_id", end)
    before = own[: own.index(end)]
    written = generate_text(trained, ids, GREEDY, 1, lambda _: None)
    assert written.tokens == len(before) + 1
    assert written.text == trained.tokenizer.decode(before)


def test_positions_limit_prompt_and_text(trained: Trained) -> None:
    positions = positions_of(trained)
    assert positions == 1024
    token = trained.tokenizer.encode(" model")
    assert len(token) == 1
    prompt = " model" * (positions - 2)
    ids = encode_prompt(trained, prompt)
    assert room_for(trained, ids) == 1
    assert generate_text(trained, ids, GREEDY, 1, lambda _: None).tokens == 1
    with pytest.raises(ConfigError, match="the prompt has 1023 tokens, .* shorten the prompt to 1022 tokens or fewer"):
        encode_prompt(trained, prompt + " model")


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(trained: Trained) -> None:
    text = "naïve — 日本語 🎉 ok"
    ids = trained.tokenizer.encode(text)
    pieces = pieces_of(trained, ids)
    assert "".join(pieces) == text
    assert "" in pieces[:-1]
    assert not any("\ufffd" in piece for piece in pieces)
    half = trained.tokenizer.encode("é")[:1]
    assert pieces_of(trained, half) == ["", "\ufffd"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_pieces_of_any_tokens_are_their_text(trained: Trained, drawn: st.DataObject) -> None:
    ids = drawn.draw(st.lists(st.integers(0, trained.tokenizer.vocab_size - 1), max_size=30))
    assert "".join(pieces_of(trained, ids)) == trained.tokenizer.decode(ids)
