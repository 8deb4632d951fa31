"""Whether a model predicts each token from those before it alone, found by looking."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from smet_train.errors import ConfigError

_TOKENS = 4
# Largest move of earlier logits that is rounding, as a fraction of the move of the last ones. Experts compute tokens in
# other company after a change: some 1e-7. Attention that looks ahead: 1e-3 with first weights of 0.02, 5e-5 with 0.002.
_ROUNDING = 1e-5
# What makes architectures causal that can also be the other thing.
_SWITCHES: dict[str, Any] = {"is_decoder": True, "is_causal": True, "causal": True, "attn_type": "uni"}


def check_causal(model: PreTrainedModel, vocab_size: int, sequence_tokens: int, name: str) -> None:
    """See that ``model``, on the CPU, computes logits of ``vocab_size`` tokens, and that none moves when a later token
    changes. Weights and the state of random generators stay as they are.

    Args:
        sequence_tokens: at most so many tokens are computed at once.
        name: what the model was built from, for messages.

    Raises:
        ConfigError: if an earlier logit moves, if the logits are of another vocabulary, or if the model can't compute
            tokens alone.
    """
    kind = model.config.model_type
    try:
        with _as_it_will_be(model), torch.no_grad():
            first, other = (_logits(model, min(_TOKENS, sequence_tokens), last, vocab_size) for last in (1, 2))
    except Exception as error:
        # Some want other inputs than tokens, or a padding token; each says so by an exception of its own.
        raise ConfigError(
            f"{name}: transformers' {type(model).__name__} can't be trained on tokens alone: "
            f"{(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(':')}; choose another architecture"
        ) from error
    if first.shape[-1] != vocab_size:
        raise ConfigError(
            f"{name}: transformers' {type(model).__name__} computes {first.shape[-1]:,} logits a token, the tokenizer "
            f"has {vocab_size:,} tokens; write the same architecture with one vocabulary, or choose another"
        )
    moved_T = (first - other).abs().amax(-1)
    if moved_T[:-1].max() > _ROUNDING * moved_T[-1]:
        raise ConfigError(
            f"{name}: '{kind}' is not causal as it is configured: a token moves the logits of those before it, so that "
            f"the model would learn to copy what it is to predict; {_remedy(model.config)}"
        )


def _logits(model: PreTrainedModel, tokens: int, last: int, vocab_size: int) -> Tensor:
    """(T, V) after ``tokens`` ids of which the last is ``last``; what is drawn on the way is drawn alike each time."""
    ids_T = torch.tensor([*range(3, 2 + tokens), last]).remainder(vocab_size)
    torch.manual_seed(0)
    logits: Tensor = model(input_ids=ids_T[None], use_cache=False).logits
    return logits[0].float()


@contextmanager
def _as_it_will_be(model: PreTrainedModel) -> Iterator[None]:
    """``model`` without dropout, and with numbers in the matrices that begin at zero: behind such an output layer, or
    at the end of such a block, nothing could be seen to move."""
    training = model.training
    zero = [parameter for parameter in model.parameters() if parameter.dim() > 1 and not parameter.any()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in zero:
            parameter.data.normal_(std=0.02)
        model.eval()
        try:
            yield
        finally:
            for parameter in zero:
                parameter.data.zero_()
            model.train(training)


def _remedy(config: Any) -> str:
    for key, value in _SWITCHES.items():
        if hasattr(config, key) and getattr(config, key) != value:
            written = f'"{value}"' if isinstance(value, str) else str(value).lower()
            return f'write "{key}": {written} into it'
    return "choose another architecture"
