import gc
import weakref
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smet_train.errors import BackendError
from smet_train.sparse import Layout
from smet_train.sparse.backends import BACKENDS, get_backend
from smet_train.sparse.backends import densify as densify_module
from smet_train.sparse.dense import gather_values
from smet_train.sparse.index import pack
from smet_train.sparse.sampling import first_index

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 8), (16, 12), (33, 17)]
DENSITIES = [0.1, 0.5, 1.0]


def problem(
    rows: int, columns: int, density: float, dtype: torch.dtype = torch.float64, block: int = 1
) -> tuple[Layout, Tensor, Tensor]:
    torch.manual_seed(rows * 100 + columns)
    sites = -(-rows // block) * -(-columns // block)
    layout = Layout(rows, columns, max(1, round(density * sites)), block)
    index = first_index(layout, 3)
    inside = gather_values(torch.ones(rows, columns, dtype=dtype), index, layout)
    return layout, index, torch.randn(layout.values_shape, dtype=dtype) * inside


def dense_oracle(
    x: Tensor, values: Tensor, index: Tensor, layout: Layout, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dvalues of a dense layer with a masked weight; independent of every backend's code."""
    b = layout.block
    weight = torch.zeros(layout.block_rows * b, layout.block_columns * b, dtype=values.dtype)
    at = [(s // layout.block_columns * b, s % layout.block_columns * b) for s in index.tolist()]
    for (row, column), block in zip(at, values, strict=True):
        weight[row : row + b, column : column + b] = block
    wide = weight.requires_grad_()
    weight = wide[: layout.out_features, : layout.in_features]
    x = x.detach().requires_grad_()
    y = F.linear(x, weight)
    y.backward(grad_y)
    assert wide.grad is not None
    assert x.grad is not None
    grad_values = torch.stack([wide.grad[row : row + b, column : column + b] for row, column in at])
    return y.detach(), x.grad, grad_values.view(layout.values_shape)


# Every backend with every edge of blocks that it can compute.
BLOCKS = [
    (name, block)
    for name, block in product(BACKENDS, [1, 3, 4])
    if BACKENDS[name].unsupported(Layout(4, 4, 1, block), torch.float64, torch.device("cpu")) is None
]


@pytest.mark.parametrize(("name", "block"), BLOCKS)
@pytest.mark.parametrize(("shape", "density"), list(product(SHAPES, DENSITIES)))
@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (0,)])
def test_equals_a_masked_dense_layer_in_fp64(
    name: str, shape: tuple[int, int], density: float, leading: tuple[int, ...], block: int
) -> None:
    layout, index, values = problem(*shape, density, block=block)
    x = torch.randn(*leading, layout.in_features, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    y = BACKENDS[name].matmul(x, values, BACKENDS[name].plan(pack(index, layout), layout))
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    expected = dense_oracle(x, values.detach(), index, layout, grad_y)
    for ours, dense in zip((y, x.grad, values.grad), expected, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_a_non_contiguous_input_gives_the_same(name: str, block: int) -> None:
    layout, index, values = problem(9, 6, 0.4, block=block)
    wide = torch.randn(5, 12, dtype=torch.float64)
    plan = BACKENDS[name].plan(pack(index, layout), layout)
    strided = wide[:, ::2]
    torch.testing.assert_close(
        BACKENDS[name].matmul(strided, values, plan),
        BACKENDS[name].matmul(strided.contiguous(), values, plan),
        rtol=1e-14,
        atol=1e-14,
    )


@pytest.mark.parametrize("name", [name for name, block in BLOCKS if block == 1])
def test_rows_without_values_give_zero(name: str) -> None:
    layout = Layout(4, 3, 2)
    index = torch.tensor([3, 5], dtype=torch.int32)  # both in row 1
    plan = BACKENDS[name].plan(pack(index, layout), layout)
    y = BACKENDS[name].matmul(torch.ones(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64), plan)
    assert y.tolist() == [[0.0, 2.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_gradcheck(name: str, block: int) -> None:
    layout, index, values = problem(5, 4, 0.5, block=block)
    plan = BACKENDS[name].plan(pack(index, layout), layout)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: BACKENDS[name].matmul(x, v, plan), (x, values.requires_grad_()))


@pytest.mark.parametrize(("name", "block"), BLOCKS)
@pytest.mark.parametrize("wanted", ["x", "values"])
def test_only_the_gradient_that_is_wanted_is_computed(wanted: str, name: str, block: int) -> None:
    layout, index, values = problem(5, 4, 0.5, block=block)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=wanted == "x")
    values.requires_grad_(wanted == "values")
    BACKENDS[name].matmul(x, values, BACKENDS[name].plan(pack(index, layout), layout)).sum().backward()
    assert (x.grad is not None, values.grad is not None) == (wanted == "x", wanted == "values")


def test_densify_saves_nothing_dense_for_backward() -> None:
    layout, index, values = problem(64, 48, 0.1)
    x = torch.randn(2, 48, dtype=torch.float64, requires_grad=True)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        BACKENDS["densify"].matmul(x, values.requires_grad_(), BACKENDS["densify"].plan(pack(index, layout), layout))
    assert saved
    assert max(saved) <= 8 * max(layout.n_active, x.numel())


def test_no_dense_weight_outlives_a_densify_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []

    scatter = densify_module._Sites.scatter

    def watched(sites: densify_module._Sites, values: Tensor) -> Tensor:
        weight = scatter(sites, values)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(densify_module._Sites, "scatter", watched)
    layout, index, values = problem(16, 12, 0.5)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    y = BACKENDS["densify"].matmul(x, values.requires_grad_(), BACKENDS["densify"].plan(pack(index, layout), layout))
    gc.collect()
    assert [reference() for reference in made] == [None]  # forward's is gone, though its backward is still to come
    y.sum().backward()
    gc.collect()
    assert [reference() for reference in made] == [None, None]


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(
        BackendError, match=r"sparsity\.backend=nope is unknown; choose one of densify, reference, csr, block"
    ):
        get_backend("nope", Layout(2, 2, 1), torch.float32, torch.device("cpu"))


def test_a_backend_that_cannot_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS["densify"], "unsupported", lambda *_: "it is Sunday", raising=True)
    with pytest.raises(BackendError, match="cannot compute a 2x2 layer in torch.float32 on cpu: it is Sunday"):
        get_backend("densify", Layout(2, 2, 1), torch.float32, torch.device("cpu"))
