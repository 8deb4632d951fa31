import pytest
from hypothesis import given
from hypothesis import strategies as st

from smet_train.config.densities import parse_densities
from smet_train.errors import ConfigError
from smet_train.sparse.allocation import allocate, erk, uniform

SHAPES = {"a": (100, 100), "b": (10, 100), "c": (400, 100)}


def test_uniform() -> None:
    assert uniform(SHAPES, 0.1) == {"a": 0.1, "b": 0.1, "c": 0.1}


def test_erk_by_hand() -> None:
    """Shares (O + I) of a, b and c: 200, 110 and 500; 5100 of the 51,000 sites to give."""
    found = erk(SHAPES, 0.1)
    scale = 5100 / 810
    expected = {"a": 200 * scale / 10_000, "b": 110 * scale / 1000, "c": 500 * scale / 40_000}
    assert found == pytest.approx(expected)


def test_erk_makes_a_layer_dense_and_shares_the_rest() -> None:
    """At density 0.2 b's share would be 1.39: it is dense, and 9200 sites are left for a and c."""
    found = erk(SHAPES, 0.2)
    scale = 9200 / 700
    assert found == pytest.approx({"a": 200 * scale / 10_000, "b": 1.0, "c": 500 * scale / 40_000})


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=8),
    st.floats(0.01, 1),
)
def test_erk_keeps_the_total_and_never_exceeds_one(shapes: list[tuple[int, int]], density: float) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    found = erk(named, density)
    assert all(0 <= share <= 1 + 1e-9 for share in found.values())
    sites = {name: rows * columns for name, (rows, columns) in named.items()}
    assert sum(found[name] * sites[name] for name in named) == pytest.approx(density * sum(sites.values()))


def test_the_first_pattern_that_matches_decides_and_the_rest_is_allocated() -> None:
    found = allocate(SHAPES, 0.1, "uniform", {"a": 0.5, "[ab]": 0.25})
    assert found == {"a": 0.5, "b": 0.25, "c": 0.1}
    assert allocate(SHAPES, 0.1, "erk", {"*": 0.3}) == dict.fromkeys(SHAPES, 0.3)
    assert list(allocate(SHAPES, 0.1, "erk", {"b": 0.3})) == ["a", "b", "c"]
    with pytest.raises(
        ConfigError, match=r"the pattern 'd' matches none of the 3 sparse layers; they are named like a"
    ):
        allocate(SHAPES, 0.1, "uniform", {"d": 0.5})


def test_densities_as_they_are_written() -> None:
    assert parse_densities(["*.q_proj=0.05", "x=1"]) == {"*.q_proj": 0.05, "x": 1.0}
    for entry in ("x", "x=0", "x=1.5", "=0.5", "x=y"):
        with pytest.raises(ConfigError, match="is no PATTERN=DENSITY"):
            parse_densities([entry])
