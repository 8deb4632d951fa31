import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from smet_train.errors import LayoutError
from smet_train.sparse import Layout


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 1.0))
@example(6, 15, 0.95)
def test_count_is_the_density_rounded_once(out_features: int, in_features: int, density: float) -> None:
    expected = round(density * (out_features * in_features))  # of the sites: factor by factor it may round otherwise
    if expected == 0:
        with pytest.raises(LayoutError, match=r"raise sparsity\.density"):
            Layout.from_density(out_features, in_features, density)
        return
    layout = Layout.from_density(out_features, in_features, density)
    assert layout.n_active == expected
    assert layout.n_active + layout.n_inactive == layout.sites == out_features * in_features
    assert layout.density == expected / (out_features * in_features)


def test_an_empty_shape_is_refused() -> None:
    with pytest.raises(LayoutError, match="at least one row"):
        Layout(0, 4, 1)


def test_more_values_than_sites_is_refused() -> None:
    with pytest.raises(LayoutError, match="holds 1 to 12 active values, got 13"):
        Layout(3, 4, 13)


def test_index_type_widens_where_sites_outgrow_32_bits() -> None:
    assert Layout(1 << 16, (1 << 15), 1).index_dtype == torch.int32
    assert Layout(1 << 16, (1 << 15) + 1, 1).index_dtype == torch.int64


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 5], dtype=torch.int32), "must be 3 values of torch.int32"),
        (torch.tensor([0, 5, 7]), "must be 3 values of torch.int32"),
        (torch.tensor([0, 5, 12], dtype=torch.int32), r"reaches outside 0\.\.11: first 0, last 12"),
        (torch.tensor([-1, 5, 7], dtype=torch.int32), "reaches outside"),
        (torch.tensor([0, 5, 5], dtype=torch.int32), "slot 2 holds site 5 after site 5"),
        (torch.tensor([5, 0, 7], dtype=torch.int32), "slot 1 holds site 0 after site 5"),
    ],
)
def test_an_index_that_breaks_an_invariant_is_named(index: torch.Tensor, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout(3, 4, 3).validate_index(index)


def test_a_sorted_unique_index_is_accepted() -> None:
    Layout(3, 4, 3).validate_index(torch.tensor([0, 5, 11], dtype=torch.int32))
