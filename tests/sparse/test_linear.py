import copy
from itertools import product

import pytest
import torch
from torch import nn

from smet_train.errors import LayoutError
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.backends import BACKENDS
from smet_train.sparse.index import choose_form
from smet_train.sparse.sampling import first_index


def layer(backend: str = "densify", bias: bool = True) -> SparseLinear:
    torch.manual_seed(0)
    layouts = {"block": Layout(6, 5, 4, 2), "triton": Layout(6, 5, 1, 16)}
    layout = layouts.get(backend, Layout(6, 5, 9))
    values = torch.randn(layout.values_shape)
    return SparseLinear(layout, first_index(layout, 1), values, torch.randn(6) if bias else None, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_that_of_the_dense_weight(backend: str, bias: bool) -> None:
    sparse = layer(backend, bias)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(sparse(x), torch.nn.functional.linear(x, sparse.to_dense(), sparse.bias))


def test_holds_active_values_only() -> None:
    sparse = layer()
    assert {name: p.shape for name, p in sparse.named_parameters()} == {"values": (9,), "bias": (6,)}
    assert {name: (b.shape, b.dtype) for name, b in sparse.named_buffers()} == {
        "packed_index": ((4,), torch.uint8)  # 30 sites, one bit each
    }


def test_a_zero_value_stays_active() -> None:
    sparse = layer(bias=False)
    with torch.no_grad():
        sparse.values[4] = 0.0
    restored = layer(bias=False)
    restored.load_state_dict(sparse.state_dict())
    restored(torch.ones(1, 5)).sum().backward()
    assert restored.index.equal(sparse.index)
    assert restored.values.grad is not None
    assert restored.values.grad[4] == 1.0


def test_loading_another_topology_takes_effect() -> None:
    source, target = layer(), layer()
    other = first_index(source.layout, 2)
    assert not other.equal(source.index)
    source.set_index(other)
    x = torch.randn(2, 5)
    target(x)  # makes a plan for the old index
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(x), source(x))


def test_loading_a_broken_index_is_refused() -> None:
    state = layer().state_dict()
    state["packed_index"] = ~state["packed_index"]
    with pytest.raises(LayoutError, match="the bitmap of a layer marks 23 of 30 sites, not 9"):
        layer().load_state_dict(state)


def test_a_broken_index_is_refused_at_birth() -> None:
    with pytest.raises(LayoutError, match="not sorted and unique"):
        SparseLinear(Layout(2, 2, 2), torch.tensor([1, 1], dtype=torch.int32), torch.zeros(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_bf16_and_returns_fp32_gradients(backend: str) -> None:
    sparse = layer(backend)
    x = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), sparse(x), rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert sparse.values.grad is not None
    assert sparse.values.grad.dtype == torch.float32


def test_a_change_of_dtype_and_a_deep_copy_keep_working() -> None:
    sparse = layer()
    x = torch.randn(3, 5)
    expected = sparse(x)
    torch.testing.assert_close(copy.deepcopy(sparse)(x), expected)
    torch.testing.assert_close(sparse.double()(x.double()).float(), expected)
    assert sparse.packed_index.dtype == torch.uint8


def test_its_text_states_the_facts() -> None:
    assert repr(layer()) == (
        "SparseLinear(in_features=5, out_features=6, active=9, density=0.3, bias=True, backend=densify)"
    )


BAD_INPUTS = {
    "a column less": lambda: torch.ones(2, 3, 4),
    "a column more": lambda: torch.ones(3, 6),
    "one token of another width": lambda: torch.ones(7),
    "a number": lambda: torch.ones(()),
    "fp64": lambda: torch.ones(3, 5, dtype=torch.float64),
    "whole numbers": lambda: torch.ones(3, 5, dtype=torch.long),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("bad", "autocast"),  # under autocast torch's own layer ends by an internal error of a number
    [pair for pair in product(BAD_INPUTS, [False, True]) if pair != ("a number", True)],
)
def test_an_input_that_a_dense_layer_refuses_is_refused_in_its_words(backend: str, bad: str, autocast: bool) -> None:
    x, sparse = BAD_INPUTS[bad](), layer(backend)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises(RuntimeError) as dense_error:
            nn.Linear(5, 6)(x)
        with pytest.raises(RuntimeError) as sparse_error:
            sparse(x)
    told, expected = str(sparse_error.value), str(dense_error.value)
    assert told == expected or ("dtype" in told and "dtype" in expected)  # whose words depend on the bias


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_autocast_leaves_fp64_alone_as_in_a_dense_layer(backend: str) -> None:
    sparse, x = layer(backend).double(), torch.randn(3, 5, dtype=torch.float64)
    expected = sparse(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparse(x), expected)


def test_a_packed_column_beyond_its_row_is_refused() -> None:
    layout, index = Layout(40, 2000, 400), torch.arange(400, dtype=torch.int32) * 200  # ten in each row
    assert choose_form(layout) == "columns"
    state = SparseLinear(layout, index, torch.zeros(400)).state_dict()
    good = state["packed_index"].clone()
    state["packed_index"][399] = 2000
    with pytest.raises(LayoutError, match=r"reaches outside 0\.\.79999"):
        SparseLinear(layout, index, torch.zeros(400)).load_state_dict(state)
    state["packed_index"].copy_(good)
    state["packed_index"][9], state["packed_index"][10] = 2050, 60  # as sites they ascend: columns 50 and 60 of row 1
    with pytest.raises(LayoutError, match="the packed index of a 40x2000 layer holds a column beyond the last"):
        SparseLinear(layout, index, torch.zeros(400)).load_state_dict(state)
