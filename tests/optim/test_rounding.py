import pytest
import torch

from smet_train.optim.rounding import round_stochastic


def test_the_mean_of_many_roundings_is_the_exact_value() -> None:
    # 1 + 2^-10 lies an eighth of the way from 1 to the next bf16 number, 1 + 2^-7.
    rounded = round_stochastic(torch.full((100_000,), 1 + 2.0**-10), key=3).double()
    assert set(rounded.tolist()) == {1.0, 1 + 2.0**-7}
    assert float(rounded.mean()) == pytest.approx(1 + 2.0**-10, abs=5 * 2.0**-7 * (0.125 * 0.875 / 1e5) ** 0.5)


def test_negative_values_round_to_their_neighbours_too() -> None:
    rounded = round_stochastic(torch.full((1000,), -(1 + 2.0**-8)), key=3)
    assert set(rounded.double().tolist()) == {-1.0, -(1 + 2.0**-7)}


def test_what_bf16_holds_exactly_is_unchanged() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -3.5, 2.0**-130, 1e38]).to(torch.bfloat16)
    assert round_stochastic(exact.float(), key=1).equal(exact)


def test_infinity_and_nan_pass_through() -> None:
    rounded = round_stochastic(torch.tensor([float("inf"), float("-inf"), float("nan")]), key=1)
    assert rounded[0] == float("inf")
    assert rounded[1] == float("-inf")
    assert rounded[2].isnan()
