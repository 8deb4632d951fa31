"""What the operators of all backends have in common: their shapes without numbers, and how they are differentiated.

A forward operator is ``(x, values, packed, out_features) -> y``, x (..., I) and y (..., O). Its backward operator is
``(grad_y, x, values, packed, of_x, of_values) -> (grad_x, grad_values)``, where a gradient that is not asked for is
empty. Both take the packed index itself, so nothing about a topology is kept beside it and none is compiled in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from smet_train.sparse.layout import Layout


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """What a product needs beside the values: the packed index, and the shape that it is of."""

    packed: Tensor
    layout: Layout


class PackedBackend:
    """A backend whose plan is the packed index; ``operator`` is its forward operator."""

    operator: Any

    def plan(self, packed: Tensor, layout: Layout) -> PackedPlan:
        """Keep the packed index as it is: nothing is computed for a new topology."""
        return PackedPlan(packed, layout)

    def matmul(self, x_NI: Tensor, values: Tensor, plan: PackedPlan) -> Tensor:
        """y of shape (N, O) for x of shape (N, I); differentiable in ``x_NI`` and ``values``."""
        y: Tensor = self.operator(x_NI, values, plan.packed, plan.layout.out_features)
        return y


def room_for(x: Tensor, out_features: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Room for y, in which nothing is set: as (N, O), to be filled, and as (..., O), to be returned.

    What an operator returns must be no view: autograd lets nobody change one in place.
    """
    y = x.new_empty(*x.shape[:-1], out_features, dtype=dtype)
    return y.view(-1, out_features), y


def differentiate(forward: Any, backward: Any) -> None:
    """Register the shapes of both (made by ``torch.library.custom_op``), and how ``forward`` is differentiated."""
    forward.register_fake(_shape_of_y)
    backward.register_fake(_shapes_of_gradients)
    forward.register_autograd(_derivative(backward), setup_context=_save)


def _shape_of_y(x: Tensor, values: Tensor, packed: Tensor, out_features: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], out_features)


def _shapes_of_gradients(
    grad_y: Tensor,  # noqa: ARG001
    x: Tensor,
    values: Tensor,
    packed: Tensor,  # noqa: ARG001
    of_x: bool,
    of_values: bool,
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape if of_x else (0, x.shape[-1]))
    return grad_x, values.new_empty(values.shape if of_values else (0,))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])


def _derivative(backward: Any) -> Callable[..., tuple[Tensor | None, Tensor | None, None, None]]:
    def derivative(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, values, packed = ctx.saved_tensors
        of_x, of_values = ctx.needs_input_grad[:2]
        grad_x, grad_values = backward(grad_y, x, values, packed, of_x, of_values)
        return grad_x if of_x else None, grad_values if of_values else None, None, None

    return derivative


def flops(x: Any, values: Any, *_: Any, **__: Any) -> int:
    """Of a forward product of the active values alone, from shapes."""
    return 2 * prod(x[:-1]) * prod(values)


def backward_flops(_grad_y: Any, x: Any, values: Any, _packed: Any, of_x: bool, of_values: bool, **_: Any) -> int:
    """Of the products for both gradients, from shapes."""
    return 2 * prod(x[:-1]) * prod(values) * (int(of_x) + int(of_values))
