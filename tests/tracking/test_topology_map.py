"""The coarse grid of one layer's active sites."""

import pytest
import torch
from torch import nn

from smet_train.errors import ConfigError
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.convert import sparsify
from smet_train.tracking.names import GRIDS
from smet_train.tracking.topology_map import TopologyMap, active_fractions


def layers() -> dict[str, SparseLinear]:
    model = nn.Sequential(nn.Linear(40, 70), nn.Linear(70, 40))
    sparsify(model, ["*"], [], density=0.25, seed=1)
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


@pytest.mark.parametrize(("rows", "columns", "block"), [(70, 40, 1), (3, 5, 1), (64, 64, 1), (100, 260, 4)])
def test_each_bin_has_the_fraction_of_its_sites(rows: int, columns: int, block: int) -> None:
    layout = Layout.from_density(rows, columns, 0.3, block)
    index_K = torch.randperm(layout.sites)[: layout.n_active].sort().values.to(layout.index_dtype)
    grid = active_fractions(index_K, layout)
    dense = torch.zeros(layout.block_rows, layout.block_columns)
    dense.view(-1)[index_K.long()] = 1
    n_rows, n_columns = min(32, layout.block_rows), min(32, layout.block_columns)
    row_bin = torch.arange(layout.block_rows) * n_rows // layout.block_rows
    column_bin = torch.arange(layout.block_columns) * n_columns // layout.block_columns
    assert grid.shape == (n_rows, n_columns)
    for i in range(n_rows):
        for j in range(n_columns):
            part = dense[row_bin == i][:, column_bin == j]
            assert grid[i, j].item() == pytest.approx(part.mean().item(), abs=1e-6)


def test_the_first_layer_that_matches_is_watched() -> None:
    [event] = TopologyMap(layers(), "*").events(7)
    assert (event["layer"], event["step"], event["out_features"], event["in_features"]) == ("0", 7, 70, 40)
    assert set(event) == {"event", "step", *GRIDS["topology_map"]}
    assert len(event["grid"]) == len(event["grid"][0]) == 32
    assert TopologyMap(layers(), "1").events(0)[0]["layer"] == "1"


def test_nothing_is_watched_if_null_or_dense() -> None:
    assert TopologyMap(layers(), None).events(0) == []
    assert TopologyMap({}, "*.q_proj").events(0) == []


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.map_layer: the pattern 'q' matches none of the 2 sparse layers"):
        TopologyMap(layers(), "q")
