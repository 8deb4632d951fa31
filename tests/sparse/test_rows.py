"""The compiled ways between values and a dense weight are those of torch, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smet_train.sparse import Layout, rows
from smet_train.sparse.backends import BACKENDS
from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.index import pack
from smet_train.sparse.rows import gather_rows, rows_are_compiled, rows_of, scatter_rows
from smet_train.sparse.sampling import first_index


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.floats(0, 1),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_same_bits(out_features: int, in_features: int, density: float, dtype: torch.dtype) -> None:
    layout = Layout(out_features, in_features, max(1, round(density * out_features * in_features)))
    index = first_index(layout, 1)
    values, dense = torch.randn(layout.n_active).to(dtype), torch.randn(in_features, out_features).to(dtype).t()
    at = rows_of(pack(index, layout), layout)
    assert scatter_rows(values, at, layout).equal(scatter_dense(values, index, layout))
    assert gather_rows(dense, at, layout).equal(gather_values(dense, index, layout))


@pytest.mark.parametrize("compiled", [True, False])
def test_densify_computes_with_and_without_them(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(rows, "numba_is_installed", lambda: compiled)
    layout = Layout(12, 9, 20)
    assert rows_are_compiled(layout, torch.device("cpu")) is compiled
    assert not rows_are_compiled(Layout(12, 9, 4, 3), torch.device("cpu"))
    assert not rows_are_compiled(layout, torch.device("cuda"))
    index = first_index(layout, 1)
    values = torch.randn(20, requires_grad=True)
    x = torch.randn(5, 9)
    y = BACKENDS["densify"].matmul(x, values, BACKENDS["densify"].plan(pack(index, layout), layout))
    y.sum().backward()
    assert y.equal(x @ scatter_dense(values.detach(), index, layout).t())
    assert values.grad is not None
    assert values.grad.equal(gather_values(torch.ones(5, 12).t() @ x, index, layout))
