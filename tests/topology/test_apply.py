import pytest
import torch

from smet_train.errors import LayoutError
from smet_train.optim import SmetAdamW
from smet_train.sparse import Layout, SparseLinear
from smet_train.topology import Move, make_move
from smet_train.topology.apply import apply_move, check_moved


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
    apply_move("layer", sparse, hand_move(sparse), optimizer, step=1)
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
    apply_move("layer", sparse, hand_move(sparse), stepped_optimizer(sparse), step=1)
    torch.testing.assert_close(sparse(x).t(), sparse.to_dense())
    assert sparse.to_dense().view(-1).nonzero().squeeze(1).tolist() == [4, 9]  # grown sites 3 and 7 hold 0


def test_plain_adam_moves_too_and_keeps_its_step() -> None:
    sparse = layer()
    optimizer = torch.optim.Adam([sparse.values])
    sparse.values.grad = torch.ones(4)
    optimizer.step()
    apply_move("layer", sparse, hand_move(sparse), optimizer, step=1)
    assert optimizer.state[sparse.values]["exp_avg"].count_nonzero() == 2
    assert optimizer.state[sparse.values]["step"] == 1


def test_state_of_an_unknown_shape_is_refused() -> None:
    sparse = layer()
    optimizer = stepped_optimizer(sparse)
    optimizer.state[sparse.values]["row_mean"] = torch.zeros(3)
    with pytest.raises(LayoutError, match=r"layer up: optimizer state 'row_mean' has shape \(3,\), the values \(4,\)"):
        apply_move("up", sparse, hand_move(sparse), optimizer, step=1)


@pytest.mark.parametrize("broken", ["values", "exp_avg", "age"])
def test_the_invariant_check_finds_what_is_not_zero_at_a_grown_slot(broken: str) -> None:
    sparse = layer()
    optimizer = stepped_optimizer(sparse)
    move = hand_move(sparse)
    apply_move("up", sparse, move, optimizer, step=1)
    check_moved("up", sparse, move, optimizer)
    held = sparse.values.data if broken == "values" else optimizer.state[sparse.values][broken]
    held[2] = 1
    with pytest.raises(LayoutError, match=f"layer up: '{broken}' is not zero at a slot grown"):
        check_moved("up", sparse, move, optimizer)
