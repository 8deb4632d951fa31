"""What a step of training holds and computes, found by taking one on tensors that have shapes but no numbers.

The step runs the same layers, backends and optimizer as a real one, under torch's fake tensors, so nothing is allocated
and nothing about their memory is written down twice.
"""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from smet_train.optim import FusedStep, SmetAdamW
from smet_train.sparse.backends import block, csr, densify, operators
from smet_train.sparse.ledger import LedgerRow, measure
from smet_train.sparse.shards import local

MICRO_BATCHES_TAKEN = 2  # at most
MakeLoss = Callable[[nn.Module], Callable[[Tensor], Tensor]]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Predicted bytes and floating-point operations of one optimizer step.

    Attributes:
        rows: what is held between steps, and gradients, by kind.
        activations_bytes: made by a micro-batch's forward pass and alive at its end: what backward needs, and the loss.
        peak_bytes: largest sum of all tensors alive during the step.
        flops: multiplications and additions of all matrix products of the step, as the backends compute them.
    """

    rows: list[LedgerRow]
    activations_bytes: int
    peak_bytes: int
    flops: int

    @property
    def state_bytes(self) -> int:
        """Bytes of all kinds together, gradients included."""
        return sum(row.bytes for row in self.rows)

    @property
    def saved_bytes(self) -> int:
        """What a checkpoint holds before it is coded, and hence what an asynchronous save copies."""
        return sum(row.bytes for row in self.rows if "gradient" not in row.kind)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while this mode is on, as long as they live."""

    def __init__(self, collect: bool = False) -> None:
        """``collect``: free reference cycles before a new peak counts.

        Under fake tensors recomputed activations hang in such cycles; real ones do not.
        """
        super().__init__()
        self._collect = collect
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Any) -> None:
        """Storages that were there before: operations in place return them."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _SHAPES.get(func, func)(*args, **(kwargs or {}))
        if func in _WORKSPACES:
            self.peak = max(self.peak, self.now + _WORKSPACES[func](*args))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._free, key, size)
        if self.now > self.peak:
            if self._collect:
                gc.collect()
            self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def materialise(model: nn.Module) -> None:
    """Replace the tensors of a model on the meta device by zeros on the CPU; a shared parameter stays shared.

    Under fake tensors that allocates nothing, but operations choose the kernels that a CPU would run.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = made.get(id(parameter))
                if zeros is None:
                    zeros = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = made[id(parameter)] = zeros
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def take_step(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], SmetAdamW],
    *,
    micro_batch_size: int,
    micro_batches: int,
    sequence_tokens: int,
    grad_clip: float,
    make_loss: MakeLoss,
    fused: bool = False,
) -> Footprint:
    """The footprint of one optimizer step of ``model``, which must be on the meta device and can't be used afterwards.

    From the second micro-batch on a step holds the gradients of those before, so no more than two are run.

    Args:
        make_loss: the loss of a micro-batch; it may split the model's parameters over processes, and what is held is
            then what this one holds.
    """
    with _garbage_of_its_own(), _without_tracebacks(), FakeTensorMode():
        materialise(model)
        loss_of = make_loss(model)
        optimizer = make_optimizer(model)
        state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        held = [*(local(parameter.detach()) for parameter in model.parameters()), *model.buffers(), *state]
        held_bytes = sum(tensor.numel() * tensor.element_size() for tensor in held)
        windows = torch.zeros(micro_batch_size, sequence_tokens + 1, dtype=torch.long)
        live = LiveBytes(collect=True)
        live.ignore([*held, windows])
        flops = FlopCounterMode(display=False, custom_mapping=_FLOPS)
        activations_bytes = 0
        with live:
            for _ in range(min(micro_batches, MICRO_BATCHES_TAKEN)):
                before = live.now
                with flops:
                    loss = loss_of(windows) / micro_batches
                    activations_bytes = live.now - before
                    with FusedStep(model, optimizer, look=False) if fused else nullcontext():
                        loss.backward()
                del loss
            if not fused:
                nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
                optimizer.step()
        rows = measure(model, optimizer, fused=fused)
    # The counter starts anew with each micro-batch.
    return Footprint(rows, activations_bytes, held_bytes + live.peak, flops.get_total_flops() * micro_batches)


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """torch writes the stack of what fake tensors can't compute to the terminal, beside raising it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


@contextmanager
def _garbage_of_its_own() -> Iterator[None]:
    """Collections inside look at what is made inside alone, which makes them quick."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad_out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad_out, query, key, value))


def _addmm_in_place(_: Any, left: Any, right: Any, **__: Any) -> int:
    return int(mm_flop(left, right))


def _grouped_product(
    left: Tensor, right: Tensor, offs: Tensor | None = None, _bias: Any = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The shape of a product whose rows, or summed columns, belong to groups."""
    groups = left.shape[0] if offs is None else offs.shape[0]
    of = (groups,) if left.dim() == right.dim() else ()
    return left.new_empty(*of, left.shape[-2], right.shape[-1], dtype=out_dtype or left.dtype)


def _grouped_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Of two-dimensional factors each row, or each summed column, is multiplied in one group alone."""
    if len(left) == len(right) == 3:
        return int(2 * left[0] * left[1] * left[2] * right[2])
    return int(2 * left[-2] * left[-1] * right[-1])


# What torch says of the shapes of these without numbers is for GPUs alone, and refuses all but bf16.
_SHAPES: dict[Any, Callable[..., Tensor]] = {torch.ops.aten._grouped_mm.default: _grouped_product}

# torch's counter knows the fused attention of GPUs alone, and no product that adds to a tensor in place.
_FLOPS = {
    torch.ops.aten.addmm_: _addmm_in_place,
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.smet.block_linear: operators.flops,
    torch.ops.smet.block_linear_backward: operators.backward_flops,
    torch.ops.smet.densify_linear: densify.flops,
    torch.ops.smet.densify_linear_backward: densify.backward_flops,
    torch.ops.smet.triton_linear: operators.flops,
    torch.ops.smet.triton_linear_backward: operators.backward_flops,
    torch.ops.smet.csr_linear: operators.flops,
    torch.ops.smet.csr_linear_backward: operators.backward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}

# What our own operators allocate while they run, which nobody outside sees.
_WORKSPACES = {
    torch.ops.smet.block_linear.default: block.workspace_bytes,
    torch.ops.smet.block_linear_backward.default: block.workspace_bytes,
    torch.ops.smet.densify_linear.default: densify.workspace_bytes,
    torch.ops.smet.densify_linear_backward.default: densify.workspace_bytes,
    torch.ops.smet.csr_linear.default: csr.workspace_bytes,
    torch.ops.smet.csr_linear_backward.default: csr.workspace_bytes,
}
