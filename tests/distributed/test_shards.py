"""What each process holds of a tensor, and how it becomes whole."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from smet_train.errors import LayoutError
from smet_train.optim import SmetAdamW
from smet_train.sparse import SparseLinear, sparsify
from smet_train.sparse.shards import held_range, local, part_of, split_as, whole
from smet_train.topology.apply import apply_move
from smet_train.topology.exploration import Exploration, exploration_bytes
from smet_train.topology.move import no_move
from smet_train.topology.whole import made_whole, whole_index
from smet_train.train.processes import Processes
from tests.distributed.ranks import each

DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.bfloat16)


def parts_and_wholes(processes: Processes) -> None:
    mesh = init_device_mesh("cpu", (processes.size,))
    for n in (1, 3, 4, 7, 12):
        like = distribute_tensor(torch.zeros(n, 2), mesh, [Shard(0)], src_data_rank=None)
        held = held_range(n, like)
        assert len(held) == local(like).shape[0]
        for dtype in DTYPES:
            for shape in ((n,), (n, 3)):
                everything = (torch.arange(torch.Size(shape).numel()) * 50).to(dtype).view(shape)
                part = part_of(everything, like)
                assert torch.equal(part, everything[held.start : held.stop])
                assert torch.equal(whole(part, like), everything)
                split = split_as(everything, like)
                assert split.shape == everything.shape
                assert local(split).untyped_storage().nbytes() == part.nbytes
                assert torch.equal(whole(local(split), split), everything)


def test_a_part_is_what_its_range_says_and_parts_make_the_whole() -> None:
    each(3, parts_and_wholes)


def test_nothing_is_split_in_one_process() -> None:
    everything = torch.arange(5)
    assert held_range(5, everything) == range(5)
    assert split_as(everything, everything) is everything


class Beside(nn.Module):
    """Whole numbers of one dtype beside values, as an index is."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.arange(7.0))
        self.index = nn.Parameter((torch.arange(11) * 23).to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.values * self.index[:7].float()


def gathered_together(processes: Processes) -> None:
    mesh = init_device_mesh("cpu", (processes.size,))
    for dtype in DTYPES[:4]:
        module = Beside(dtype)
        alone = module(torch.ones(7)).detach()
        fully_shard(module, mesh=mesh)
        y = module(torch.ones(7))
        assert torch.equal(y, alone)
        y.sum().backward()
        assert module.values.grad is not None
        assert module.index.grad is None


def test_an_index_of_any_dtype_is_gathered_with_the_values() -> None:
    each(2, gathered_together)


def sparse_layer(processes: Processes, density: float, block: int = 1) -> tuple[SparseLinear, Tensor]:
    """A layer that is split over the processes, and its index."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24))
    [layer] = sparsify(model, ["0"], density=density, seed=1, block=block).values()
    index_K = layer.index
    layer.index_as_parameter()
    fully_shard(layer, mesh=init_device_mesh("cpu", (processes.size,)))
    return layer, index_K


def index_split(processes: Processes) -> None:
    for density, block in ((0.02, 1), (0.3, 1), (0.3, 4)):
        layer, index_K = sparse_layer(processes, density, block)
        with pytest.raises(LayoutError, match="split over the processes"):
            _ = layer.index
        assert local(layer.packed_index).numel() <= -(-layer.packed_index.numel() // processes.size)
        assert torch.equal(whole_index(layer, processes.whole), index_K)
        x = torch.randn(5, 40)
        before = layer(x)  # which leaves no plan that refers to memory that is freed
        assert layer._plan is None
        assert torch.equal(layer(x), before)


def test_a_split_index_can_not_be_taken_for_the_whole() -> None:
    each(2, index_split)


def ages_become_wider(processes: Processes) -> None:
    """In the 256th update of a layer whose ages are of one byte each."""
    alone = sparsify(nn.Sequential(nn.Linear(40, 24)), ["0"], density=0.3, seed=1)["0"]
    layer, _ = sparse_layer(processes, 0.3)
    ages = torch.arange(alone.values.numel()) % 256
    held = []
    for each_one in (alone, layer):
        optimizer = SmetAdamW([each_one.values], topology_moves=True)
        state = optimizer.state[each_one.values]
        state.update(step=256, moved_steps=list(range(255, 0, -1)))
        state["age"].copy_(part_of(ages.byte(), each_one.values))
        with made_whole(each_one, optimizer, processes.whole):
            apply_move("0", each_one, no_move(each_one.index), optimizer)
        assert state["age"].dtype == torch.int16
        assert state["age"].shape == local(each_one.values).shape
        assert optimizer._places.keys() == {each_one.values}
        held.append(whole(state["age"], each_one.values))
    assert torch.equal(held[0], held[1])
    assert torch.equal(held[0].long(), ages + 1)


def test_ages_of_a_split_layer_become_wider_as_those_of_a_whole_one() -> None:
    each(2, ages_become_wider)


def exploration_split(processes: Processes) -> None:
    alone = sparsify(nn.Sequential(nn.Linear(40, 24)), ["0"], density=0.3, seed=1)
    layer, _ = sparse_layer(processes, 0.3)
    layers = {"0": layer}
    one, several = Exploration(alone), Exploration(alone)
    several.split(layers)
    size = several.bits["0"].shape[0]
    assert local(several.bits["0"]).numel() == exploration_bytes(layers) == len(held_range(size, layer.values))
    assert several.fraction == one.fraction
    for sites in (torch.tensor([0, 7, 8, 500, 959]), torch.tensor([1, 8, 958])):
        for each_one in (one, several):
            each_one.visit("0", sites)
            each_one.settle(processes.add_up)
        assert several.ever_active == one.ever_active
        assert torch.equal(whole(local(several.bits["0"]), several.bits["0"]), one.bits["0"])
    again = Exploration(alone)
    again.split(layers)
    again.load(one.bits, one.ever_active)
    assert torch.equal(local(again.bits["0"]), local(several.bits["0"]))
    assert again.fraction == one.fraction


@pytest.mark.parametrize("size", [2, 3])
def test_sites_ever_active_are_counted_over_all_processes(size: int) -> None:
    each(size, exploration_split)


def step_in_bf16(processes: Processes) -> None:
    mesh = init_device_mesh("cpu", (processes.size,))
    torch.manual_seed(3)
    shapes = (1001,), (7, 4, 4), (33, 5), (1,)
    starts = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]
    gradients = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]

    def updated(parameters: Sequence[nn.Parameter], parts: Sequence[Tensor]) -> list[Tensor]:
        optimizer = SmetAdamW([{"params": parameters, "topology_moves": True}], lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            for parameter, gradient in zip(parameters, parts, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return [whole(local(parameter.detach()), parameter) for parameter in parameters]

    alone = updated([nn.Parameter(start.clone()) for start in starts], gradients)
    split = [distribute_tensor(start, mesh, [Shard(0)], src_data_rank=None) for start in starts]
    parts = [distribute_tensor(gradient, mesh, [Shard(0)], src_data_rank=None) for gradient in gradients]
    several = updated([nn.Parameter(start) for start in split], parts)
    assert all(torch.equal(one, other) for one, other in zip(alone, several, strict=True))
    assert not all(torch.equal(one, start) for one, start in zip(alone, starts, strict=True))


def test_a_step_in_bf16_rounds_as_one_process_does() -> None:
    each(2, step_in_bf16)
    each(4, step_in_bf16)
