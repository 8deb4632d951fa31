import copy

import pytest
import torch

from smet_train.errors import LayoutError
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.backends import BACKENDS
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
