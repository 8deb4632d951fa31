"""Where one layer's active sites are, in a coarse grid, over a run."""

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from smet_train.errors import ConfigError
from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear
from smet_train.sparse.shards import Gather, whole
from smet_train.topology.whole import whole_index

BINS = 32
_DIGITS = 3  # a bin of a real layer has hundreds of sites


class TopologyMap:
    """Watches the first of ``layers`` whose name matches the glob ``pattern``; none if it is None or nothing is sparse.

    Args:
        gather: makes whole what is split over processes.

    Raises:
        ConfigError: if there are sparse layers and none matches.
    """

    def __init__(self, layers: Mapping[str, SparseLinear], pattern: str | None, gather: Gather = whole) -> None:
        self._gather = gather
        self._layer: tuple[str, SparseLinear] | None = None
        if pattern is None or not layers:
            return
        name = next((name for name in layers if fnmatchcase(name, pattern)), None)
        if name is None:
            near = get_close_matches(pattern, list(layers), n=3, cutoff=0.0)
            raise ConfigError(
                f"tracking.map_layer: the pattern '{pattern}' matches none of the {len(layers)} sparse layers; "
                f"write for instance {', '.join(near)}, or null for none"
            )
        self._layer = name, layers[name]

    def events(self, step: int) -> list[dict[str, Any]]:
        """The layer's grid as it is after ``step``; no event if no layer is watched. All processes take part."""
        if self._layer is None:
            return []
        name, layer = self._layer
        grid = active_fractions(whole_index(layer, self._gather), layer.layout).tolist()
        return [
            {
                "event": "topology_map",
                "step": step,
                "layer": name,
                "out_features": layer.out_features,
                "in_features": layer.in_features,
                "grid": [[round(fraction, _DIGITS) for fraction in row] for row in grid],
            }
        ]


@torch.no_grad()
def active_fractions(index_K: Tensor, layout: Layout) -> Tensor:
    """Active over all sites in each bin, float64, at most ``BINS`` output bins x ``BINS`` input bins, bins of equal
    size but for rounding."""
    rows, columns = layout.block_rows, layout.block_columns
    n_rows, n_columns = min(BINS, rows), min(BINS, columns)
    row_K = index_K.div(columns, rounding_mode="floor").long()
    column_K = index_K.remainder(columns).long()
    bin_K = row_K.mul_(n_rows).div_(rows, rounding_mode="floor").mul_(n_columns)
    bin_K += column_K.mul_(n_columns).div_(columns, rounding_mode="floor")
    active = torch.bincount(bin_K, minlength=n_rows * n_columns).view(n_rows, n_columns).cpu()
    sites = torch.outer(_bin_sizes(rows, n_rows), _bin_sizes(columns, n_columns))
    return active.double() / sites


def _bin_sizes(length: int, bins: int) -> Tensor:
    return torch.bincount(torch.arange(length) * bins // length, minlength=bins)
