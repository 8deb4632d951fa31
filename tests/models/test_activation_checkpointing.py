"""Blocks that are computed again give the same gradients and keep less."""

from collections.abc import Callable

import pytest
import torch

from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.models.build import checkpoint_activations
from smet_train.sparse_model import build_sparse_model
from smet_train.train.step import token_loss

QuickConfig = Callable[..., Config]


class Words:
    vocab_size = 300
    eos_id = 0


@pytest.mark.parametrize("family", [["model.family=llama"], ["model.family=gpt2", "model.kv_heads=null"]])
def test_gradients_are_the_same_bits_and_less_is_kept(quick_config: QuickConfig, family: list[str]) -> None:
    windows = torch.randint(0, 300, (2, 33), generator=torch.Generator().manual_seed(1))
    gradients, kept = [], []
    for checkpointing in ("false", "true"):
        config = quick_config(*family, f"train.activation_checkpointing={checkpointing}", "sparsity.backend=csr")
        model, _ = build_sparse_model(config, Words(), torch.device("cpu"))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):  # type: ignore[misc]
            loss = token_loss(model, windows, "fp32")
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        kept.append(sum(sizes))
    assert all(a is not None and b is not None and a.equal(b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_a_model_that_cannot_is_refused(quick_config: QuickConfig) -> None:
    model, _ = build_sparse_model(quick_config(), Words(), torch.device("cpu"))
    model.supports_gradient_checkpointing = False  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing=true: .*; write false"):
        checkpoint_activations(model)
