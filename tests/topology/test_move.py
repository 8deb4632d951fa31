import torch

from smet_train.topology import make_move


def test_a_move_written_by_hand() -> None:
    # Active sites 1 4 6 9; slots 0 and 2 (sites 1 and 6) go, sites 3 and 7 are grown.
    index = torch.tensor([1, 4, 6, 9], dtype=torch.int32)
    keep = torch.tensor([False, True, False, True])
    move = make_move(index, keep, torch.tensor([3, 7], dtype=torch.int32))
    assert move.new_index_K.tolist() == [3, 4, 7, 9]
    assert move.new_index_K.dtype == torch.int32
    assert move.source_K.tolist() == [-1, 1, -1, 3]
    assert move.grown_K.tolist() == [True, False, True, False]
    assert move.gather(torch.tensor([10.0, 40.0, 60.0, 90.0])).tolist() == [0.0, 40.0, 0.0, 90.0]
    assert move.gather(torch.tensor([1, 4, 6, 9], dtype=torch.uint8)).tolist() == [0, 4, 0, 9]


def test_a_move_that_changes_nothing_is_the_identity() -> None:
    index = torch.tensor([2, 5], dtype=torch.int32)
    move = make_move(index, torch.ones(2, dtype=torch.bool), index[:0])
    assert move.new_index_K.equal(index)
    assert move.source_K.tolist() == [0, 1]
