"""Text that a trained model writes, token by token, by transformers' own ``generate``."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import ConfigError
from smet_train.train.precision import compute_context
from smet_train.trained import Trained

# Below, the logits' own rounding decides more than the temperature does, and dividing by it overflows in the end.
_COLDEST = 1e-8


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; ``temperature=0`` takes the likeliest, ``top_k=0`` and ``top_p=1`` leave all in."""

    max_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Generated:
    """The text without its prompt, its tokens (the end-of-text one included) and the seconds they took."""

    text: str
    tokens: int
    seconds: float


class _Streamer(BaseStreamer):
    """Hands text on as soon as its characters are whole; neither the prompt nor the end-of-text token."""

    def __init__(self, tokenizer: TextTokenizer, write: Callable[[str], object]) -> None:
        self._pieces = tokenizer.pieces()
        self._eos_id = tokenizer.eos_id
        self._write = write
        self._prompt_is_next = True
        self.text = ""
        self.tokens = 0

    def put(self, value: Tensor) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        for token in value.flatten().tolist():
            self.tokens += 1
            if token != self._eos_id:
                self._hand_on(self._pieces.add(token))

    def end(self) -> None:
        self._hand_on(self._pieces.end())

    def _hand_on(self, piece: str) -> None:
        if piece:
            self.text += piece
            self._write(piece)


def encode_prompt(trained: Trained, prompt: str) -> Tensor:
    """Ids (1, P) of ``prompt`` behind an end-of-text token, as documents begin in training.

    Raises:
        ConfigError: if the model has no position left for a token to write.
    """
    ids = [trained.tokenizer.eos_id, *trained.tokenizer.encode(prompt)]
    positions = positions_of(trained)
    if positions is not None and len(ids) >= positions:
        raise ConfigError(
            f"the prompt has {len(ids) - 1} tokens, and the model has positions for {positions}, one of them for the "
            f"beginning and one for each token that is written; shorten the prompt to {positions - 2} tokens or fewer"
        )
    return torch.tensor([ids])


def positions_of(trained: Trained) -> int | None:
    """Tokens that the model can look at together; None if its architecture sets no limit."""
    limit: Any = getattr(trained.model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def room_for(trained: Trained, prompt_ids: Tensor) -> int | None:
    """Tokens that can be written behind the prompt; None if there is no limit."""
    positions = positions_of(trained)
    return None if positions is None else positions - prompt_ids.shape[1]


def generate_text(
    trained: Trained, prompt_ids: Tensor, sampling: Sampling, seed: int, write: Callable[[str], object]
) -> Generated:
    """Write up to ``sampling.max_tokens`` tokens behind the prompt (1, P), or until the end of text.

    Args:
        seed: of the draws; the same seed on the same device gives the same text.
        write: is given the text as it comes.
    """
    device = next(trained.model.parameters()).device
    room = room_for(trained, prompt_ids)
    greedy = sampling.temperature < _COLDEST
    settings = GenerationConfig(
        max_new_tokens=sampling.max_tokens if room is None else min(sampling.max_tokens, room),
        do_sample=not greedy,
        eos_token_id=trained.tokenizer.eos_id,
        pad_token_id=trained.tokenizer.eos_id,
        use_cache=True,
        **({} if greedy else {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}),
    )
    streamer = _Streamer(trained.tokenizer, write)
    torch.manual_seed(seed)
    started = time.perf_counter()
    model: Any = trained.model
    with torch.no_grad(), compute_context(device, trained.config.train.precision.name):
        model.generate(prompt_ids.to(device), generation_config=settings, streamer=streamer)
    return Generated(streamer.text, streamer.tokens, time.perf_counter() - started)
