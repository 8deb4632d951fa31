import pytest
import torch

from smet_train.sparse import Layout
from smet_train.sparse.index import pack
from smet_train.sparse.sampling import first_index


@pytest.mark.parametrize("layout", [Layout(20, 18, 60), Layout(20, 18, 6, 8)])
def test_it_is_a_well_behaved_operator(layout: Layout) -> None:
    packed = pack(first_index(layout, 1), layout)
    x = torch.randn(2, 3, 18, requires_grad=True)
    values = torch.randn(layout.values_shape, requires_grad=True)
    torch.library.opcheck(torch.ops.smet.densify_linear.default, (x, values, packed, 20))
    grads = (torch.randn(2, 3, 20), x.detach(), values.detach(), packed)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.smet.densify_linear_backward.default, (*grads, *wanted))
