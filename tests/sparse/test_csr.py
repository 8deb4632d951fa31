"""Compressed-row products: every form of index, precisions, tiles that tokens do not fill, and as an operator."""

import pytest
import torch
from torch.nn import functional as F

from smet_train.errors import BackendError
from smet_train.sparse import Layout
from smet_train.sparse.backends import BACKENDS, csr, get_backend
from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.index import choose_form, pack
from smet_train.sparse.sampling import first_index


@pytest.mark.parametrize("tokens", [1, 15, 257, 600])
@pytest.mark.parametrize(
    ("layout", "form"),
    [(Layout(301, 413, 6000), "columns"), (Layout(61, 90, 2000), "bitmap"), (Layout(40, 50, 30), "sites")],
)
def test_equals_a_dense_product_for_every_form_of_index(layout: Layout, form: str, tokens: int) -> None:
    assert choose_form(layout) == form
    torch.manual_seed(tokens)
    index = first_index(layout, 5)
    x = torch.randn(tokens, layout.in_features, dtype=torch.float64, requires_grad=True)
    values = torch.randn(layout.n_active, dtype=torch.float64, requires_grad=True)
    weight = scatter_dense(values.detach(), index, layout).requires_grad_()
    y = csr.csr_linear(x, values, pack(index, layout), layout.out_features)
    dense = x.detach().requires_grad_()
    expected = F.linear(dense, weight)
    grad_y = torch.randn_like(expected)
    y.backward(grad_y)
    expected.backward(grad_y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(x.grad, dense.grad, rtol=1e-12, atol=1e-11)
    assert weight.grad is not None
    torch.testing.assert_close(values.grad, gather_values(weight.grad, index, layout), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
def test_narrow_numbers_are_summed_in_fp32(dtype: torch.dtype, tolerance: float) -> None:
    layout = Layout(33, 64, 400)
    index = first_index(layout, 2)
    x = torch.randn(300, 64).to(dtype).requires_grad_()
    values = torch.randn(400).to(dtype).requires_grad_()
    y = csr.csr_linear(x, values, pack(index, layout), 33)
    grad_y = torch.randn(300, 33).to(dtype)
    y.backward(grad_y)
    weight = scatter_dense(values.detach().double(), index, layout)
    wide_x, wide_g = x.detach().double(), grad_y.double()
    assert (y.dtype, x.grad is not None and x.grad.dtype, values.grad is not None and values.grad.dtype) == (dtype,) * 3
    for ours, exact in (
        (y, wide_x @ weight.t()),
        (x.grad, wide_g @ weight),
        (values.grad, gather_values(wide_g.t() @ wide_x, index, layout)),
    ):
        assert ours is not None
        assert (ours.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_a_result_is_the_same_bits_every_time() -> None:
    layout = Layout(50, 60, 500)
    packed, values = pack(first_index(layout, 1), layout), torch.randn(500)
    x, g = torch.randn(1000, 60), torch.randn(1000, 50)
    first, second = (
        (csr.csr_linear(x, values, packed, 50), *csr.csr_linear_backward(g, x, values, packed, True, True))
        for _ in range(2)
    )
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_torch_keeps_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    layout = Layout(50, 60, 500)
    csr.csr_linear(torch.randn(1000, 60), torch.randn(500), pack(first_index(layout, 1), layout), 50)
    assert torch.get_num_threads() == before


def test_not_a_number_is_not_lost() -> None:
    layout = Layout(4, 5, 10)
    x = torch.randn(20, 5)
    x[3, 0] = float("nan")
    index = torch.tensor([0, 5, 10, 11, 12, 13, 14, 15, 16, 17], dtype=torch.int32)  # column 0 in every row
    assert csr.csr_linear(x, torch.ones(10), pack(index, layout), 4).isnan().nonzero().tolist() == [
        [3, row] for row in range(4)
    ]


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_it_is_a_well_behaved_operator(density: float) -> None:
    layout = Layout.from_density(80, 70, density)
    packed = pack(first_index(layout, 1), layout)
    x = torch.randn(2, 3, 70, requires_grad=True)
    values = torch.randn(layout.n_active, requires_grad=True)
    torch.library.opcheck(torch.ops.smet.csr_linear.default, (x, values, packed, 80))
    grads = (torch.randn(2, 3, 80), x.detach(), values.detach(), packed)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.smet.csr_linear_backward.default, (*grads, *wanted))


def test_what_it_can_not_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    backend = BACKENDS["csr"]
    assert backend.unsupported(Layout(4, 4, 2), torch.float32, cpu) is None
    with pytest.raises(BackendError, match="not blocks of 2; use block or densify"):
        get_backend("csr", Layout(4, 4, 2, 2), torch.float32, cpu)
    with pytest.raises(BackendError, match="its kernels are for CPUs; use densify"):
        get_backend("csr", Layout(4, 4, 2), torch.float32, torch.device("cuda"))
    with pytest.raises(BackendError, match="floating-point"):
        get_backend("csr", Layout(4, 4, 2), torch.int32, cpu)
    monkeypatch.setattr(csr, "numba_is_installed", lambda: False)
    with pytest.raises(BackendError, match="pip install numba"):
        get_backend("csr", Layout(4, 4, 2), torch.float32, cpu)
