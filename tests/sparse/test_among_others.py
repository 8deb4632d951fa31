"""Sparse layers in modules that treat them as they treat nn.Linear: in place, by their weight, by keyword."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.errors import LayoutError
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.backends import BACKENDS
from smet_train.sparse.sampling import first_index
from smet_train.topology.probe import probe_gradients


def layer(backend: str = "densify", block: int = 1, bias: bool = False) -> SparseLinear:
    torch.manual_seed(0)
    block = {"block": 2, "triton": 16}.get(backend, block)
    layout = Layout.from_density(6, 5, 0.6, block)
    values = torch.randn(layout.values_shape, dtype=torch.float32 if backend == "triton" else torch.float64)
    return SparseLinear(layout, first_index(layout, 1), values, torch.randn(6).to(values) if bias else None, backend)


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda y: F.relu(y, inplace=True),
    "addition": lambda y: y.add_(2.0),
    "a part": lambda y: _scaled_in_part(y),
    "product": lambda y: y.mul_(y.detach().clone()),
}


def _scaled_in_part(y: Tensor) -> Tensor:
    y[..., :2] *= 3.0
    return y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", IN_PLACE)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_its_output_can_be_changed_in_place(backend: str, operation: str, leading: tuple[int, ...]) -> None:
    sparse = layer(backend)
    x = torch.randn(*leading, 5, dtype=sparse.values.dtype)
    weight = sparse.to_dense().requires_grad_()
    IN_PLACE[operation](sparse(x)).square().sum().backward()
    IN_PLACE[operation](F.linear(x, weight)).square().sum().backward()
    assert weight.grad is not None
    expected = SparseLinear(sparse.layout, sparse.index, sparse.values.detach(), None, "reference")
    torch.testing.assert_close(sparse.values.grad, _at_active(weight.grad, expected))


def _at_active(dense: Tensor, like: SparseLinear) -> Tensor:
    like.weight.backward(dense)
    assert like.values.grad is not None
    return like.values.grad


@pytest.mark.parametrize("block", [1, 4])
def test_its_weight_is_that_of_a_dense_layer_and_differentiable(block: int) -> None:
    sparse = layer(block=block, bias=True)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert sparse.weight.shape == (6, 5)
    assert (sparse.weight.dtype, sparse.weight.device) == (x.dtype, x.device)
    assert torch.equal(sparse.weight, sparse.to_dense())
    (F.linear(x, sparse.weight, sparse.bias) - sparse(x)).sum().backward()  # both gradients, which cancel
    assert sparse.values.grad is not None
    torch.testing.assert_close(sparse.values.grad, torch.zeros_like(sparse.values), atol=1e-12, rtol=0)


def test_its_weight_can_go_through_a_function_of_ones_own_and_be_compiled() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x @ weight.t()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
            return None, grad.t() @ ctx.saved_tensors[0]

    sparse, x = layer(), torch.randn(3, 5, dtype=torch.float64)
    sparse(x).sum().backward()
    expected, sparse.values.grad = sparse.values.grad, None
    Product.apply(x, sparse.weight).sum().backward()
    torch.testing.assert_close(sparse.values.grad, expected)
    compiled = torch.compile(lambda: F.linear(x, sparse.weight), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(), sparse(x))


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda weight: weight.add_(1.0),
    "by an operator": lambda weight: weight.__imul__(2.0),
    "an entry": lambda weight: weight.__setitem__(0, 1.0),
    "its data": lambda weight: weight.data.zero_(),
    "a view": lambda weight: weight.detach().t()[0].zero_(),
    "by torch.nn.init": nn.init.normal_,
    "as an output": lambda weight: torch.neg(torch.ones_like(weight), out=weight),
}


@pytest.mark.parametrize("how", WRITES)
def test_writing_into_its_weight_is_refused(how: str) -> None:
    sparse = layer()
    with (
        torch.no_grad(),
        pytest.raises(LayoutError, match=r"what is written into it is lost; write into layer\.values"),
    ):
        WRITES[how](sparse.weight)


def test_its_input_can_be_named_and_a_hook_may_change_its_gradient_in_place() -> None:
    sparse, x = layer(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    hidden = x * 1.0
    hidden.register_hook(lambda grad: grad.mul_(2.0))
    sparse(input=hidden).sum().backward()
    torch.testing.assert_close(x.grad, 2.0 * sparse.to_dense().sum(0).expand(3, 5))


class Reader(nn.Module):
    """Computes with its layers' weights, calls one by name, and changes what comes out in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read = layer(), layer()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(input=x)
        hidden.relu_()
        return F.linear(hidden[..., :5].to(self.read.weight.dtype), self.read.weight)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("leading", [(), (4,)])
def test_growth_by_gradient_sees_what_modules_do_with_a_weight(batches: int, leading: tuple[int, ...]) -> None:
    model = Reader()
    xs = [torch.randn(*leading, 5, dtype=torch.float64) for _ in range(batches)]
    dense = copy.deepcopy(model)
    weights = {name: getattr(model, name).to_dense().requires_grad_() for name in ("first", "read")}
    for x in xs:
        hidden = F.linear(x, weights["first"]).relu()
        F.linear(hidden[..., :5], weights["read"]).square().sum().backward()
    layers = {"first": model.first, "read": model.read}

    def batch(x: Tensor) -> Callable[[], None]:
        return lambda: model(x).square().sum().backward()

    found = probe_gradients(layers, dict.fromkeys(layers, 3), [batch(x) for x in xs], active=True)
    for name, sparse in layers.items():
        grad = weights[name].grad
        assert grad is not None
        inactive = grad.abs().flatten().clone()
        inactive[sparse.index.long()] = -1.0
        assert found.sites[name].tolist() == sorted(inactive.topk(3).indices.tolist())
        of_values = _at_active(grad / batches, getattr(dense, name))
        torch.testing.assert_close(found.active_gradients[name], of_values)
        assert sparse._weight_read is None
