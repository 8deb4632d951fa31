"""The block backend: its precision in 16 bits, as an operator, and what it leaves to others."""

import pytest
import torch

from smet_train.errors import BackendError
from smet_train.sparse import Layout
from smet_train.sparse.backends import block, get_backend
from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.index import pack
from smet_train.sparse.sampling import first_index


@pytest.mark.parametrize("edge", [16, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_narrow_numbers_stay_within_their_rounding(dtype: torch.dtype, tolerance: float, edge: int) -> None:
    layout = Layout.from_density(341, 128, 0.4, edge)  # 341 rows: the last blocks reach beyond
    index = first_index(layout, 2)
    inside = gather_values(torch.ones(341, 128), index, layout)
    values = (torch.randn(layout.values_shape) * inside).to(dtype).requires_grad_()
    x = torch.randn(2, 100, 128).to(dtype).requires_grad_()
    y = block.block_linear(x, values, pack(index, layout), 341)
    grad_y = torch.randn(2, 100, 341).to(dtype)
    y.backward(grad_y)
    weight = scatter_dense(values.detach().double(), index, layout)
    wide_x, wide_g = x.detach().double(), grad_y.double()
    exact_values = gather_values(wide_g.flatten(0, 1).t() @ wide_x.flatten(0, 1), index, layout)
    for ours, exact in ((y, wide_x @ weight.t()), (x.grad, wide_g @ weight), (values.grad, exact_values)):
        assert ours is not None
        assert ours.dtype == dtype
        assert (ours.double() - exact).abs().max() <= tolerance * exact.abs().max()
    assert values.grad is not None
    assert not values.grad[inside == 0].any()  # what lies beyond W never moves


def test_in_16_bits_a_sum_is_rounded_once_and_empty_rows_and_columns_are_zero() -> None:
    layout = Layout(70, 90, 12, 8)  # of 9 x 12 blocks; the last ones are cut
    index = torch.tensor([0, 3, 4, 7, 11, 24, 25, 26, 60, 96, 99, 107], dtype=torch.int32)
    torch.manual_seed(1)
    values = (torch.randn(layout.values_shape) * gather_values(torch.ones(70, 90), index, layout)).to(torch.bfloat16)
    x, g = torch.randn(300, 90).to(torch.bfloat16), torch.randn(300, 70).to(torch.bfloat16)
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote is NaN
    try:
        y = block.block_linear(x, values, pack(index, layout), 70)
        grad_x, grad_values = block.block_linear_backward(g, x, values, pack(index, layout), True, True)
    finally:
        torch.use_deterministic_algorithms(False)
    weight = scatter_dense(values.double(), index, layout)
    exact_values = gather_values(g.double().t() @ x.double(), index, layout)
    for ours, exact in ((y, x.double() @ weight.t()), (grad_x, g.double() @ weight), (grad_values, exact_values)):
        # half a unit of bf16's last place, and what fp32 sums lose where they cancel
        torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-5 * exact.abs().max().item())
    assert not y[:, 8:16].any()
    assert not grad_x[:, 40:48].any()


def test_what_it_holds_beside_its_results() -> None:
    layout = Layout(64, 96, 24, 16)  # all 4 x 6 blocks
    values, packed = torch.randn(layout.values_shape), pack(first_index(layout, 1), layout)
    x, g = torch.randn(10, 96), torch.randn(10, 64)
    assert block.workspace_bytes(x, values, packed, 64) == 0
    narrow = [tensor.to(torch.bfloat16) for tensor in (g, x, values)]
    assert block.workspace_bytes(narrow[1], narrow[2], packed, 64) == 10 * 96 * 2
    assert block.workspace_bytes(*narrow, packed, False, True) == 10 * 96 * 2
    assert block.workspace_bytes(*narrow, packed, True, False) == 10 * 64 * 2


def test_it_is_a_well_behaved_operator() -> None:
    layout = Layout(20, 18, 6, 8)
    packed = pack(first_index(layout, 1), layout)
    x = torch.randn(2, 3, 18, requires_grad=True)
    values = torch.randn(layout.values_shape, requires_grad=True)
    torch.library.opcheck(torch.ops.smet.block_linear.default, (x, values, packed, 20))
    grads = (torch.randn(2, 3, 20), x.detach(), values.detach(), packed)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.smet.block_linear_backward.default, (*grads, *wanted))


def test_what_it_can_not_do_is_said() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(BackendError, match="not single values; set sparsity.block_size"):
        get_backend("block", Layout(4, 4, 2), torch.float32, cpu)
    with pytest.raises(BackendError, match="too little work for it"):
        get_backend("block", Layout(4, 4, 2, 2), torch.float32, torch.device("cuda"))
    with pytest.raises(BackendError, match="floating-point"):
        get_backend("block", Layout(4, 4, 2, 2), torch.int32, cpu)
