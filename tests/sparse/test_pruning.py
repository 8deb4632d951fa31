"""The sites that trained weights give, against torch.topk and by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.sparse import Layout, sparsify
from smet_train.sparse.dense import scatter_dense
from smet_train.sparse.pruning import inherited_sites, largest_sites


def weight(rows: int = 12, columns: int = 10) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_single_values_are_those_of_topk() -> None:
    dense = weight()
    layout = Layout.from_density(12, 10, 0.25)
    wanted = dense.abs().flatten().topk(30).indices.sort().values
    assert largest_sites(dense, layout).equal(wanted.int())


@pytest.mark.parametrize("shape", [(12, 8), (10, 7)])
def test_blocks_go_by_their_norm_and_what_lies_beyond_the_weight_counts_nothing(shape: tuple[int, int]) -> None:
    dense = weight(*shape)
    layout = Layout.from_density(*shape, 0.5, 4)
    wide = F.pad(dense, (0, -shape[1] % 4, 0, -shape[0] % 4))
    norms = wide.unfold(0, 4, 4).unfold(1, 4, 4).square().sum((2, 3)).sqrt()
    wanted = norms.flatten().topk(layout.n_active).indices.sort().values
    assert largest_sites(dense, layout).equal(wanted.int())


def test_the_lowest_of_equal_ones_are_kept() -> None:
    dense = torch.tensor([[1.0, -2.0, 2.0], [2.0, 3.0, -2.0]])
    assert largest_sites(dense, Layout(2, 3, 3)).tolist() == [1, 2, 4]
    assert largest_sites(torch.zeros(4, 4), Layout(4, 4, 3)).tolist() == [0, 1, 2]
    assert largest_sites(torch.ones(4, 4), Layout(4, 4, 2, 2)).tolist() == [0, 1]


@pytest.mark.parametrize("block", [1, 4])
def test_everything_is_kept_at_density_one(block: int) -> None:
    layout = Layout.from_density(12, 10, 1.0, block)
    assert largest_sites(weight(), layout).tolist() == list(range(layout.sites))


def had(layout: Layout) -> tuple[Tensor, Tensor]:
    """(sites, weight) of a layer that was sparse, with a value that was just regrown at 0."""
    sites = torch.randperm(layout.sites, generator=torch.Generator().manual_seed(2))[: layout.n_active].sort().values
    sites = sites.to(layout.index_dtype)
    values = torch.randn(layout.values_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values[0] = 0.0
    return sites, scatter_dense(values, sites, layout)


@pytest.mark.parametrize("block", [1, 4])
def test_as_many_as_before_are_the_same_sites(block: int) -> None:
    layout = Layout.from_density(12, 8, 0.5, block)
    sites, dense = had(layout)
    assert inherited_sites(dense, layout, sites, layout, key=7).equal(sites)


def test_fewer_are_the_largest_of_those() -> None:
    source = Layout.from_density(12, 8, 0.5)
    sites, dense = had(source)
    kept = inherited_sites(dense, replace(source, n_active=20), sites, source, key=7)
    assert kept.equal(dense.abs().flatten().topk(20).indices.sort().values.int())
    # Active zeros are chosen before inactive ones, the lowest first.
    assert inherited_sites(torch.zeros(12, 8), replace(source, n_active=2), sites, source, 7).equal(sites[:2])


def test_more_are_all_of_those_and_random_ones_of_value_zero() -> None:
    source = Layout.from_density(12, 8, 0.25)
    sites, dense = had(source)
    more = replace(source, n_active=60)
    first, again, other = (inherited_sites(dense, more, sites, source, key) for key in (7, 7, 8))
    assert first.equal(again)
    assert not first.equal(other)
    for index in (first, other):
        more.validate_index(index)
        assert set(sites.tolist()) < set(index.tolist())
    everything = replace(source, n_active=source.sites)
    assert inherited_sites(dense, everything, sites, source, 7).tolist() == list(range(96))


@pytest.mark.parametrize(("before", "now"), [(1, 4), (4, 1), (4, 3), (2, 4)])
def test_blocks_of_another_size_hold_what_was_active(before: int, now: int) -> None:
    shape = (10, 7)
    source = Layout.from_density(*shape, 0.3, before)
    sites, _ = had(source)
    active = scatter_dense(torch.ones(source.values_shape), sites, source)
    wide = F.pad(active, (0, -shape[1] % now, 0, -shape[0] % now))
    covered = wide.unfold(0, now, now).unfold(1, now, now).amax((2, 3)).flatten().nonzero().squeeze(1)
    layout = Layout(*shape, covered.numel(), now)
    assert inherited_sites(active, layout, sites, source, key=7).equal(covered.int())


def test_sparsify_takes_the_sites_that_it_is_given() -> None:
    model = nn.ModuleDict({"a": nn.Linear(10, 12, bias=False)})
    dense = model["a"].weight.detach().clone()  # type: ignore[operator]
    layers = sparsify(
        model,
        ["a"],
        density=0.25,
        init="dense",
        choose_sites=lambda _name, layout, weight_OI: largest_sites(weight_OI, layout),
    )
    kept = dense.abs() >= dense.abs().flatten().topk(30).values[-1]
    assert layers["a"].to_dense().equal(dense * kept)
