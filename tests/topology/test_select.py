import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smet_train.sparse import Layout
from smet_train.sparse.sampling import first_index
from smet_train.topology.select import grow_random, keep_highest


def test_the_least_are_dropped_and_ties_fall_from_the_left() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0, 5.0])
    assert keep_highest(scores, 0).tolist() == [True] * 6
    assert keep_highest(scores, 2).tolist() == [True, False, True, False, True, True]
    assert keep_highest(scores, 4).tolist() == [True, False, False, False, False, True]
    assert keep_highest(scores, 6).tolist() == [False] * 6


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
@settings(max_examples=80, deadline=None)
def test_the_count_is_exact_and_nothing_kept_is_less_than_what_went(scores: list[int], data: st.DataObject) -> None:
    n_drop = data.draw(st.integers(0, len(scores)))
    values = torch.tensor(scores, dtype=torch.float32)
    keep = keep_highest(values, n_drop)
    assert int((~keep).sum()) == n_drop
    if 0 < n_drop < len(scores):
        assert values[keep].min() >= values[~keep].max()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**40), st.data())
@settings(max_examples=80, deadline=None)
def test_grown_sites_are_distinct_sorted_and_were_inactive(
    rows: int, columns: int, key: int, data: st.DataObject
) -> None:
    layout = Layout(rows, columns, data.draw(st.integers(1, rows * columns)))
    index = first_index(layout, key)
    n_grow = data.draw(st.integers(0, layout.n_inactive))
    grown = grow_random(index, n_grow, layout.sites, key + 1)
    assert grown.dtype == index.dtype
    assert grown.numel() == n_grow
    assert len(set(grown.tolist()) | set(index.tolist())) == n_grow + layout.n_active
    assert bool((grown[1:] > grown[:-1]).all())
    assert n_grow == 0 or (0 <= int(grown[0]) and int(grown[-1]) < layout.sites)
