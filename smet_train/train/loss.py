"""Cross-entropy through the output layer, a chunk of tokens at a time: the logits of all tokens never exist together.

The gradients are made with the loss, while a chunk's logits are at hand (as in Liger Kernel, arXiv 2410.10989), so
nothing of the size of the vocabulary times the tokens is kept for backward and no product is made twice.
torch 2.13's own ``linear_cross_entropy`` does that too, but returns the loss of bf16 inputs in bf16, where 10.54 became
10.25.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 1 << 24  # 64 MiB of logits in fp32, and as many bytes of their logarithms


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NI: Tensor, weight_VI: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        n_tokens = targets_N.numel()
        # sums over tokens and the loss itself: at least fp32
        dtype = torch.promote_types(hidden_NI.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden_NI.device)
        grad_hidden = torch.empty_like(hidden_NI) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VI, dtype=dtype) if need_weight else None
        for start in range(0, n_tokens, chunk):
            hidden, targets = hidden_NI[start : start + chunk], targets_N[start : start + chunk, None]
            log_p = torch.log_softmax(hidden @ weight_VI.t(), -1, dtype=dtype)
            total -= log_p.gather(1, targets).sum()
            if not (need_hidden or need_weight):
                continue
            grad_logits = log_p.exp_()
            del log_p
            grad_logits.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=dtype))
            grad_logits = grad_logits.div_(n_tokens).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = grad_logits @ weight_VI
            if grad_weight is not None and grad_weight.dtype == hidden.dtype:
                grad_weight.addmm_(grad_logits.t(), hidden)
            elif grad_weight is not None:
                grad_weight += grad_logits.t() @ hidden
            del grad_logits  # before the next chunk's logits are made
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VI.dtype
        ctx.used = False
        return total / n_tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.used:
            raise RuntimeError("the chunked cross-entropy was run backward before; compute the loss again")
        ctx.used = True
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            # in place, for it may be the largest gradient of the model
            grad_weight = grad_weight.mul_(grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


def linear_cross_entropy(
    hidden_NI: Tensor, head: nn.Linear, targets_N: Tensor, dtype: torch.dtype | None = None, chunk: int | None = None
) -> Tensor:
    """Mean cross-entropy in nats of ``head(hidden)`` against ``targets``; a scalar of at least fp32.

    It can be run backward once (RuntimeError), and its gradients are not differentiable.

    Args:
        hidden_NI: last hidden states of N tokens.
        head: output layer of V classes, without bias.
        targets_N: class of each token, int64.
        dtype: in which the products are made; None = as they are.
        chunk: tokens whose logits exist at the same time; None = as many as ``CHUNK_LOGITS`` allows.
    """
    assert head.bias is None
    chunk = chunk or max(1, CHUNK_LOGITS // head.out_features)
    hidden, weight = (hidden_NI, head.weight) if dtype is None else (hidden_NI.to(dtype), head.weight.to(dtype))
    with torch.autocast(hidden_NI.device.type, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets_N, chunk)
    return loss
