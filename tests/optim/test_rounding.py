import pytest
import torch

from smet_train.optim.rounding import add_stochastic, round_stochastic


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


def test_updates_below_the_spacing_are_not_lost() -> None:
    p = torch.ones(2000, dtype=torch.bfloat16)
    for step in range(64):
        add_stochastic(p, torch.full((2000,), 2.0**-13), seed=1, name="p", step=step)
    # 64 * 2^-13 = 2^-7: one spacing. Plain bf16 addition would leave every value at 1.
    assert float(p.double().mean()) == pytest.approx(1 + 2.0**-7, abs=5e-4)


def test_noise_is_a_function_of_seed_name_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seed: int, name: str, step: int) -> torch.Tensor:
        p = torch.ones(10, 30, dtype=torch.bfloat16)
        add_stochastic(p, torch.full((10, 30), 2.0**-9), seed, name, step)
        return p

    base = run(1, "a", 5)
    assert run(1, "a", 5).equal(base)
    assert not any(run(*other).equal(base) for other in [(2, "a", 5), (1, "b", 5), (1, "a", 6)])
    monkeypatch.setattr("smet_train.optim.rounding._CHUNK", 7)
    assert run(1, "a", 5).equal(base)
