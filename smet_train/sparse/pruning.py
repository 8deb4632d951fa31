"""First sites by magnitude: which weights of a trained dense matrix, or of a trained sparse one, are kept."""

from dataclasses import replace

import torch
from torch import Tensor

from smet_train.sparse.dense import gather_values
from smet_train.sparse.layout import Layout
from smet_train.sparse.sampling import draw_distinct, inactive_sites


@torch.no_grad()
def largest_sites(weight_OI: Tensor, layout: Layout) -> Tensor:
    """The ``layout.n_active`` sites of largest magnitude, a block's being its norm; ascending, shape (K,).

    Among equal magnitudes the lowest sites are kept.
    """
    kept = _largest(_magnitudes(weight_OI, None, layout), layout.n_active)
    return kept.nonzero().squeeze(1).to(layout.index_dtype)


@torch.no_grad()
def inherited_sites(weight_OI: Tensor, layout: Layout, sites_S: Tensor, source: Layout, key: int) -> Tensor:
    """``layout.n_active`` sites for a weight that has been sparse; ascending, shape (K,).

    As many as before: the sites it had. Fewer: those of them of largest magnitude. More: all of them, and sites drawn
    from ``key`` among those that were inactive. With blocks of another size a site was active if any weight of it was.

    Args:
        weight_OI: the trained weight, zero where it was inactive.
        sites_S: its active sites, ascending, in the layout ``source``.
    """
    had_S = _in_blocks(sites_S, source, layout)
    missing = layout.n_active - had_S.numel()
    if missing <= 0:
        kept_S = _largest(_magnitudes(weight_OI, had_S, layout), layout.n_active)
        return had_S[kept_S].to(layout.index_dtype)
    ranks_N = draw_distinct(missing, layout.sites - had_S.numel(), key, had_S.device)
    added_N = inactive_sites(had_S, ranks_N.sort().values)
    return torch.cat([had_S.long(), added_N]).sort().values.to(layout.index_dtype)


def _magnitudes(weight_OI: Tensor, sites_S: Tensor | None, layout: Layout) -> Tensor:
    """|w| of each of the sites (None: of all), or the norm of each block."""
    if layout.block == 1:
        flat = weight_OI.reshape(-1)
        return (flat if sites_S is None else flat[sites_S]).abs()
    if sites_S is None:
        sites_S = torch.arange(layout.sites, dtype=layout.index_dtype, device=weight_OI.device)
    values_Sbb = gather_values(weight_OI, sites_S, replace(layout, n_active=sites_S.numel()))
    return torch.linalg.vector_norm(values_Sbb, dim=(1, 2))


def _largest(magnitudes_S: Tensor, n_keep: int) -> Tensor:
    """A bool tensor (S,), True at the ``n_keep`` largest, the lowest first among equal ones.

    A threshold and a count of ties decide, not a sort, which may leave the order of equal ones open.
    """
    threshold = magnitudes_S.kthvalue(magnitudes_S.numel() - n_keep + 1).values
    keep = magnitudes_S > threshold
    ties = (magnitudes_S == threshold).nonzero().squeeze(1)
    keep[ties[: n_keep - int(keep.sum())]] = True
    return keep


def _in_blocks(sites_S: Tensor, source: Layout, layout: Layout) -> Tensor:
    """The sites of ``layout`` that hold a weight which was active in ``source``; ascending."""
    if source.block == layout.block:
        return sites_S
    inside = torch.arange(source.block, device=sites_S.device)
    sites_S = sites_S.long()
    rows_S = sites_S // source.block_columns * source.block
    columns_S = sites_S % source.block_columns * source.block
    rows_Sb, columns_Sb = rows_S[:, None] + inside, columns_S[:, None] + inside
    # Blocks at the edges reach beyond the weight.
    row_blocks_Sb = rows_Sb.clamp(max=layout.out_features - 1) // layout.block
    column_blocks_Sb = columns_Sb.clamp(max=layout.in_features - 1) // layout.block
    return (row_blocks_Sb[:, :, None] * layout.block_columns + column_blocks_Sb[:, None, :]).unique()
