import pytest
import torch

from smet_train.errors import LayoutError
from smet_train.optim import SmetAdamW
from smet_train.optim.fp8 import read_slots
from smet_train.sparse import Layout, SparseLinear
from smet_train.topology import Move, make_move
from smet_train.topology.apply import apply_move, apply_shrink, check_moved


def layer() -> SparseLinear:
    return SparseLinear(
        Layout(3, 4, 4), torch.tensor([1, 4, 6, 9], dtype=torch.int32), torch.tensor([1.0, 4.0, 6.0, 9.0])
    )


def hand_move(sparse: SparseLinear) -> Move:
    keep = torch.tensor([False, True, False, True])
    return make_move(sparse.index, keep, torch.tensor([3, 7], dtype=torch.int32))


def stepped_optimizer(sparse: SparseLinear) -> SmetAdamW:
    optimizer = SmetAdamW([sparse.values], lr=0.1, topology_moves=True)
    sparse.values.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    return optimizer


def test_values_index_moments_and_ages_move_in_place() -> None:
    sparse = layer()
    optimizer = stepped_optimizer(sparse)
    state = optimizer.state[sparse.values]
    held = [sparse.values, sparse.index, state["exp_avg"], state["exp_avg_sq"], state["age"]]
    identities = [(id(tensor), tensor.data_ptr()) for tensor in held]
    old_values, old_m = sparse.values.detach().clone(), state["exp_avg"].clone()
    apply_move("layer", sparse, hand_move(sparse), optimizer)
    assert [(id(tensor), tensor.data_ptr()) for tensor in held] == identities
    assert sparse.index.tolist() == [3, 4, 7, 9]
    assert sparse.values.tolist() == [0.0, float(old_values[1]), 0.0, float(old_values[3])]
    assert state["exp_avg"].tolist() == [0.0, float(old_m[1]), 0.0, float(old_m[3])]
    assert state["age"].tolist() == [0, 1, 0, 1]
    assert state["moved_steps"] == [1]
    assert sparse.values.grad is None


def test_the_next_forward_uses_the_new_sites() -> None:
    sparse = layer()
    x = torch.eye(4)
    sparse(x)
    apply_move("layer", sparse, hand_move(sparse), stepped_optimizer(sparse))
    torch.testing.assert_close(sparse(x).t(), sparse.to_dense())
    assert sparse.to_dense().view(-1).nonzero().squeeze(1).tolist() == [4, 9]  # grown sites 3 and 7 hold 0


def test_plain_adam_moves_too_and_keeps_its_step() -> None:
    sparse = layer()
    optimizer = torch.optim.Adam([sparse.values])
    sparse.values.grad = torch.ones(4)
    optimizer.step()
    apply_move("layer", sparse, hand_move(sparse), optimizer)
    assert optimizer.state[sparse.values]["exp_avg"].count_nonzero() == 2
    assert optimizer.state[sparse.values]["step"] == 1


def test_state_of_an_unknown_shape_is_refused() -> None:
    sparse = layer()
    optimizer = stepped_optimizer(sparse)
    optimizer.state[sparse.values]["row_mean"] = torch.zeros(3)
    with pytest.raises(LayoutError, match=r"layer up: optimizer state 'row_mean' has shape \(3,\), the values \(4,\)"):
        apply_move("up", sparse, hand_move(sparse), optimizer)


@pytest.mark.parametrize("broken", ["values", "exp_avg", "age"])
def test_the_invariant_check_finds_what_is_not_zero_at_a_grown_slot(broken: str) -> None:
    sparse = layer()
    optimizer = stepped_optimizer(sparse)
    move = hand_move(sparse)
    apply_move("up", sparse, move, optimizer)
    check_moved("up", sparse, move, optimizer)
    held = sparse.values.data if broken == "values" else optimizer.state[sparse.values][broken]
    held[2] = 1
    with pytest.raises(LayoutError, match=f"layer up: '{broken}' is not zero at a slot grown"):
        check_moved("up", sparse, move, optimizer)


def in_8_bits(seed: int = 0) -> tuple[SparseLinear, SmetAdamW]:
    """A layer of 4900 values whose moments differ by orders of magnitude within a block of codes."""
    torch.manual_seed(seed)
    index = torch.randperm(100 * 98)[:4900].sort().values.int()
    sparse = SparseLinear(Layout(100, 98, 4900), index, torch.randn(4900))
    optimizer = SmetAdamW([sparse.values], topology_moves=True, moments="fp8")
    for _ in range(3):
        sparse.values.grad = torch.randn(4900) * torch.logspace(-2, 2, 4900)[torch.randperm(4900)]
        optimizer.step()
    return sparse, optimizer


def moments_of(sparse: SparseLinear, optimizer: SmetAdamW) -> tuple[torch.Tensor, torch.Tensor]:
    state = optimizer.state[sparse.values]
    return read_slots(state, "exp_avg"), read_slots(state, "exp_avg_sq")


def test_moments_in_8_bits_move_without_loss() -> None:
    sparse, optimizer = in_8_bits()
    state = optimizer.state[sparse.values]
    held = [value for value in state.values() if isinstance(value, torch.Tensor)]
    before = [moment.clone() for moment in moments_of(sparse, optimizer)]
    inactive = torch.ones(9800, dtype=torch.bool).index_fill(0, sparse.index.long(), False).nonzero().flatten().int()
    keep = torch.ones(4900, dtype=torch.bool).index_fill(0, torch.randperm(4900)[:900], False)
    move = make_move(sparse.index, keep, inactive[torch.randperm(4900)[:900]])
    apply_move("up", sparse, move, optimizer)
    check_moved("up", sparse, move, optimizer)
    assert all(any(value is old for old in held) for value in state.values() if isinstance(value, torch.Tensor))
    for old, new in zip(before, moments_of(sparse, optimizer), strict=True):
        moved, kept = move.gather(old), ~move.grown_K
        # what is 15 octaves and more below the largest of its new block is rounded to it or to zero
        assert float((new == moved)[kept].float().mean()) > 0.995
        assert float((new - moved).abs().max()) < 2**-14 * float(moved.abs().max())
        assert not new[move.grown_K].any()
        assert bool(((new > 0) == (moved > 0)).float().mean() > 0.995)
    assert bool((moments_of(sparse, optimizer)[1] > 0).equal(move.gather(before[1]) > 0))
    state["exp_avg"][move.grown_K.nonzero()[0]] = 1
    with pytest.raises(LayoutError, match="layer up: 'exp_avg' is not zero at a slot grown"):
        check_moved("up", sparse, move, optimizer)


def test_moments_in_8_bits_are_inherited_if_they_are_kept() -> None:
    sparse, optimizer = in_8_bits()
    before = [moment.clone() for moment in moments_of(sparse, optimizer)]
    inactive = torch.ones(9800, dtype=torch.bool).index_fill(0, sparse.index.long(), False).nonzero().flatten().int()
    keep = torch.arange(4900) >= 500
    move = make_move(sparse.index, keep, inactive[:500])
    apply_move("up", sparse, move, optimizer, keep_moments=True)
    for old, new in zip(before, moments_of(sparse, optimizer), strict=True):
        assert float((new == move.gather_all(old)).float().mean()) > 0.995


def test_moments_in_8_bits_shrink() -> None:
    sparse, optimizer = in_8_bits()
    before = [moment.clone() for moment in moments_of(sparse, optimizer)]
    keep = torch.rand(4900) < 0.3
    apply_shrink("up", sparse, keep, optimizer)
    state, n = optimizer.state[sparse.values], int(keep.sum())
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (n,)
    assert state["exp_avg_exponent"].shape == state["exp_avg_sq_exponent"].shape == (-(-n // 64),)
    for old, new in zip(before, moments_of(sparse, optimizer), strict=True):
        assert float((new == old[keep]).float().mean()) > 0.995
    sparse.values.grad = torch.ones(n)
    optimizer.step()
