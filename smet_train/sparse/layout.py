"""The integer facts of one sparse matrix: its shape, its blocks, how many are active, what a valid index is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smet_train.errors import LayoutError

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of a sparse weight W of ``out_features`` x ``in_features`` and how much of it is active.

    W is divided into blocks of ``block`` x ``block`` weights; with ``block=1`` each weight is one. Where ``block`` does
    not divide a side, the last blocks reach beyond W; what lies there is held, stays zero and is never read.

    A *site* is a block's position, counted row by row: ``site = block_row * block_columns + block_column``. A *slot* is
    a position in the values. The index holds the active sites in ascending order, so slot k holds the block of site
    ``index[k]``.

    Args:
        n_active: active slots: values, or blocks of values.

    Raises:
        LayoutError: if a feature count or ``block`` is below 1 or ``n_active`` is not in [1, sites].
    """

    out_features: int
    in_features: int
    n_active: int
    block: int = 1

    def __post_init__(self) -> None:
        if self.out_features < 1 or self.in_features < 1:
            raise LayoutError(f"a sparse layer needs at least one row and one column, got {self.shape_text}")
        if self.block < 1:
            raise LayoutError(f"the edge of a block must be at least 1, got {self.block}")
        if not 1 <= self.n_active <= self.sites:
            what = "values" if self.block == 1 else f"blocks of {self.block}x{self.block}"
            raise LayoutError(
                f"a sparse layer of {self.shape_text} holds 1 to {self.sites} active {what}, got {self.n_active}; "
                "raise sparsity.density or name the layer in sparsity.exclude"
            )

    @classmethod
    def from_density(cls, out_features: int, in_features: int, density: float, block: int = 1) -> "Layout":
        """The one place where a density becomes a count: K = round(density * sites)."""
        if block < 1:
            raise LayoutError(f"the edge of a block must be at least 1, got {block}")
        sites = -(-out_features // block) * -(-in_features // block)
        return cls(out_features, in_features, round(density * sites), block)

    @property
    def block_rows(self) -> int:
        """Rows of blocks; the last one may reach beyond W."""
        return -(-self.out_features // self.block)

    @property
    def block_columns(self) -> int:
        """Columns of blocks; the last one may reach beyond W."""
        return -(-self.in_features // self.block)

    @property
    def sites(self) -> int:
        """Positions where a slot could be, active or not."""
        return self.block_rows * self.block_columns

    @property
    def n_inactive(self) -> int:
        """Sites without a slot."""
        return self.sites - self.n_active

    @property
    def weights(self) -> int:
        """Weights of W if it were dense."""
        return self.out_features * self.in_features

    @property
    def n_values(self) -> int:
        """Values held: those of all active slots, what reaches beyond W included."""
        return self.n_active * self.block * self.block

    @property
    def values_shape(self) -> tuple[int, ...]:
        """(K,) for single values, (G, b, b) for blocks."""
        return (self.n_active,) if self.block == 1 else (self.n_active, self.block, self.block)

    @property
    def density(self) -> float:
        """Active slots over sites, after rounding to a whole count."""
        return self.n_active / self.sites

    @property
    def shape_text(self) -> str:
        """The shape of W as in ``2048x768``, out before in."""
        return f"{self.out_features}x{self.in_features}"

    @property
    def index_dtype(self) -> torch.dtype:
        """The integer type in which sites are computed with."""
        return torch.int32 if self.sites - 1 <= _INT32_MAX else torch.int64

    def validate_index(self, index_K: Tensor) -> None:
        """Check that ``index_K`` holds ``n_active`` distinct sites of W in ascending order.

        On the meta device, where tensors hold no numbers, shape and dtype are all there is to check.

        Raises:
            LayoutError: naming the first invariant that does not hold.
        """
        if index_K.shape != (self.n_active,) or index_K.dtype != self.index_dtype:
            raise LayoutError(
                f"the index of a {self.shape_text} layer must be {self.n_active} values of {self.index_dtype}, "
                f"got shape {tuple(index_K.shape)} of {index_K.dtype}"
            )
        if index_K.is_meta:
            return
        if int(index_K[0]) < 0 or int(index_K[-1]) >= self.sites:
            raise LayoutError(
                f"the index of a {self.shape_text} layer reaches outside 0..{self.sites - 1}: "
                f"first {int(index_K[0])}, last {int(index_K[-1])}"
            )
        if not bool((index_K[1:] > index_K[:-1]).all()):
            slot = int((index_K[1:] <= index_K[:-1]).nonzero()[0]) + 1
            raise LayoutError(
                f"the index of a {self.shape_text} layer is not sorted and unique: slot {slot} holds site "
                f"{int(index_K[slot])} after site {int(index_K[slot - 1])}"
            )
