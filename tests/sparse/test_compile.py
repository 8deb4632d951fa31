"""torch.compile sees one graph in a sparse layer, and the same graph after the topology has moved."""

from itertools import product

import pytest
import torch
from torch import nn

from smet_train.sparse import Layout, SparseLinear, sparsify
from smet_train.sparse.backends import BACKENDS
from smet_train.sparse.sampling import first_index

# Every backend with an edge of blocks that it can compute here, and its forms of index.
CASES = [
    (name, block, density)
    for name, block, density in product(BACKENDS, [1, 16], [0.05, 0.5])
    if BACKENDS[name].unsupported(Layout(96, 64, 2, block), torch.float32, torch.device("cpu")) is None
]


@pytest.mark.parametrize(("name", "block", "density"), CASES)
def test_one_graph_that_is_not_compiled_again(name: str, block: int, density: float) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64, bias=False))
    layers: dict[str, SparseLinear] = sparsify(model, ["*"], density=density, block=block, backend=name)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)  # a break is an error
    for key in (2, 3, 4):
        x = torch.randn(5, 64, requires_grad=True)
        compiled(x).square().sum().backward()
        got = [x.grad, *(p.grad for p in model.parameters())]
        x.grad = None
        model.zero_grad()
        model(x).square().sum().backward()
        for ours, eager in zip(got, [x.grad, *(p.grad for p in model.parameters())], strict=True):
            torch.testing.assert_close(ours, eager)
        model.zero_grad()
        for layer in layers.values():
            layer.set_index(first_index(layer.layout, key))
    assert len(graphs) == 1
