"""The chunked loss is the loss of all logits at once: value, gradients, dtype; and no tensor is as large as those."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from smet_train.analysis.footprint import LiveBytes
from smet_train.models import plain_head
from smet_train.sparse import sparsify
from smet_train.train.loss import linear_cross_entropy
from smet_train.train.precision import compute_context
from smet_train.train.step import token_loss


def problem(n: int, width: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(n)
    hidden = torch.randn(n, width, dtype=dtype, requires_grad=True)
    head = nn.Linear(width, classes, bias=False, dtype=dtype)
    return hidden, head, torch.randint(0, classes, (n,))


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 9), st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_equals_the_loss_of_all_logits_in_fp64(n: int, width: int, classes: int, chunk: int) -> None:
    hidden, head, targets = problem(n, width, classes)
    expected = F.cross_entropy(head(hidden), targets)
    gradients = torch.autograd.grad(3 * expected, [hidden, head.weight])
    loss = linear_cross_entropy(hidden, head, targets, chunk=chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(3 * loss, [hidden, head.weight]), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "head", "both"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    hidden, head, targets = problem(7, 4, 5)
    expected = F.cross_entropy(head(hidden), targets)
    hidden.requires_grad_(frozen == "head")
    head.weight.requires_grad_(frozen == "hidden")
    loss = linear_cross_entropy(hidden, head, targets, chunk=3)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    if frozen == "both":
        assert not loss.requires_grad
    else:
        loss.backward()
        assert (hidden.grad is None) == (frozen == "hidden")
        assert (head.weight.grad is None) == (frozen == "head")


def test_a_second_backward_is_refused() -> None:
    hidden, head, targets = problem(4, 3, 5)
    loss = linear_cross_entropy(hidden, head, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="was run backward before"):
        loss.backward()


def test_bf16_products_have_an_fp32_loss() -> None:
    hidden, head, targets = problem(64, 16, 500, torch.float32)
    logits = (hidden.bfloat16() @ head.weight.bfloat16().t()).float()
    expected = F.cross_entropy(logits, targets)
    loss = linear_cross_entropy(hidden, head, targets, torch.bfloat16, chunk=24)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(expected, [hidden, head.weight])
    for ours, theirs in zip(torch.autograd.grad(loss, [hidden, head.weight]), wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-5)


def test_the_logits_never_exist_together() -> None:
    hidden, head, targets = problem(512, 8, 1000, torch.float32)
    live = LiveBytes()
    with live:
        linear_cross_entropy(hidden, head, targets, chunk=64).backward()
    logits_bytes = 512 * 1000 * 4
    # two tensors of a chunk's logits and the gradient of the head; all at once take two of all logits
    assert live.peak < 0.35 * logits_bytes
    live = LiveBytes()
    with live:
        F.cross_entropy(head(hidden), targets).backward()
    assert live.peak > 2 * logits_bytes


SHAPE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def llama(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=24, **more))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, **none))


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), gpt2], ids=["llama", "tied", "gpt2"])
def test_a_models_loss_is_that_of_its_logits(make: Any, precision: str) -> None:
    model = make()
    windows = torch.randint(0, 40, (3, 9))
    assert plain_head(model) is not None
    loss = token_loss(model, windows, precision)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with compute_context(torch.device("cpu"), precision):
        logits = model(input_ids=windows[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
    expected.backward()
    rtol, atol = (1e-5, 1e-7) if precision == "fp32" else (0.1, 2e-3)
    torch.testing.assert_close(loss, expected, rtol=1e-6 if precision == "fp32" else 1e-3, atol=0)
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=rtol, atol=atol)


def test_models_with_other_logits_are_asked_for_them() -> None:
    sparse_head = llama()
    sparsify(sparse_head, ["lm_head"], density=0.5)
    biased = llama()
    biased.lm_head = nn.Linear(16, 40)
    gemma = GemmaForCausalLM(GemmaConfig(**SHAPE, intermediate_size=24, head_dim=8, num_key_value_heads=2))
    for model in (sparse_head, biased, gemma, nn.Linear(2, 2)):
        assert plain_head(model) is None
    windows = torch.randint(0, 40, (2, 5))
    logits = biased(input_ids=windows[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    torch.testing.assert_close(token_loss(biased, windows, "fp32"), expected)
