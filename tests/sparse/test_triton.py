"""The kernels for GPUs, under Triton's interpreter where there is none: within rounding of a dense masked layer."""

from itertools import product

import pytest
import torch

from smet_train.errors import BackendError
from smet_train.sparse import Layout
from smet_train.sparse.backends import BACKENDS, get_backend, triton_blocks
from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.index import pack
from smet_train.sparse.sampling import first_index

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(16, 16), (48, 32), (40, 70), (133, 50)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("shape", "edge", "density"), list(product(SHAPES, [16, 32], [0.1, 0.5, 1.0])))
def test_equals_a_masked_dense_layer_within_its_rounding(
    shape: tuple[int, int], edge: int, density: float, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    rows, columns = shape
    sites = -(-rows // edge) * -(-columns // edge)
    layout = Layout(rows, columns, max(1, round(density * sites)), edge)
    index = first_index(layout, 2)
    inside = gather_values(torch.ones(shape), index, layout)
    values = (torch.randn(layout.values_shape) * inside).to(DEVICE, dtype).requires_grad_()
    x = torch.randn(2, columns, 67).to(DEVICE, dtype).transpose(1, 2).requires_grad_()  # not contiguous
    grad_y = torch.randn(2, 67, rows).to(DEVICE, dtype)
    backend = BACKENDS["triton"]
    y = backend.matmul(x, values, backend.plan(pack(index.to(DEVICE), layout), layout))
    y.backward(grad_y)
    weight = scatter_dense(values.detach().double().cpu(), index, layout)
    wide_x, wide_g = x.detach().double().cpu(), grad_y.double().cpu()
    exact_values = gather_values(wide_g.flatten(0, 1).t() @ wide_x.flatten(0, 1), index, layout)
    for ours, exact in ((y, wide_x @ weight.t()), (x.grad, wide_g @ weight), (values.grad, exact_values)):
        assert ours is not None
        assert ours.dtype == dtype
        assert (ours.double().cpu() - exact).abs().max() <= tolerance * max(1.0, float(exact.abs().max()))
    assert values.grad is not None
    assert not values.grad.cpu()[inside == 0].any()  # what lies beyond W never moves


def test_it_is_a_well_behaved_operator() -> None:
    layout = Layout(40, 34, 4, 16)
    packed = pack(first_index(layout, 1).to(DEVICE), layout)
    x = torch.randn(2, 3, 34, device=DEVICE, requires_grad=True)
    values = torch.randn(layout.values_shape, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.smet.triton_linear.default, (x, values, packed, 40))
    grads = (torch.randn(2, 3, 40, device=DEVICE), x.detach(), values.detach(), packed)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.smet.triton_linear_backward.default, (*grads, *wanted))


def test_what_it_can_not_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, cuda = Layout(64, 64, 2, 16), torch.device("cuda")
    assert BACKENDS["triton"].unsupported(fine, torch.bfloat16, cuda) is None
    with pytest.raises(BackendError, match="edges of 16, 32, 64, 128; set sparsity.block_size"):
        get_backend("triton", Layout(64, 64, 2), torch.float32, cuda)
    with pytest.raises(BackendError, match="fp32 and bf16"):
        get_backend("triton", fine, torch.float64, cuda)
    with pytest.raises(BackendError, match="less than"):
        get_backend("triton", Layout(2**17, 2**17, 2**17, 128), torch.float32, cuda)
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(BackendError, match="for GPUs; use block or densify"):
            get_backend("triton", fine, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(triton_blocks, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match="pip install triton"):
        get_backend("triton", fine, torch.float32, cuda)
