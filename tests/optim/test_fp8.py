"""Moments in 8 bits: what a code can hold, that rounding has no bias, and that an optimizer follows the one in fp32."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smet_train.optim import SmetAdamW
from smet_train.optim import update as update_module
from smet_train.optim.fp8 import BLOCK, EXPONENT, LEAST_VALUES, Fp8, read_slots, rounding_noise
from smet_train.optim.update import adamw_fp8_, update, update_by_torch

CPU = torch.device("cpu")
CONSTANTS = (0.1, 0.99, 0.01, 1e-8, -1e-2, -1e-4)
EXPONENTS = ("exp_avg" + EXPONENT, "exp_avg_sq" + EXPONENT)


def rounded(numbers: Tensor, *, signed: bool, key: int | None = None) -> Tensor:
    """What becomes of ``numbers`` in 8 bits; ``key``: of the noise, None rounds to the nearest."""
    held = Fp8.zeros(numbers, signed=signed)
    held.set_(numbers, *([] if key is None else [rounding_noise(numbers.numel(), key, 16, CPU, 0)]))
    return held.numbers()


def largest_of_block(numbers: Tensor) -> Tensor:
    """The power of two below each number's block's largest; 1 in a block of zeros, which has none."""
    parts = numbers.abs().split(BLOCK)
    return torch.cat([torch.full_like(part, 2.0 ** math.floor(math.log2(float(part.max()) or 1.0))) for part in parts])


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 300), st.floats(-60, 60), st.floats(0, 40), st.booleans(), st.integers(0, 2**63 - 1), st.booleans()
)
@example(257, 0.0, 0.0, False, 16202, False)  # whose last block is zero
def test_a_code_is_an_eighth_from_its_number_or_below_the_range(
    n: int, octave: float, spread: float, signed: bool, key: int, nearest: bool
) -> None:
    torch.manual_seed(key % 2**31)
    numbers = (torch.rand(n) + 0.01) * 2.0 ** (octave - spread * torch.rand(n))
    if signed:
        numbers *= torch.randint(0, 2, (n,)) * 2 - 1
    numbers[torch.rand(n) < 0.1] = 0
    numbers[0] = 2.0**octave
    back = rounded(numbers, signed=signed, key=None if nearest else key)
    # rounding may lift the largest into the next octave, and the range with it
    least = largest_of_block(numbers) * 1.125 * 2.0 ** -(15 if signed else 31)
    inside = numbers.abs() >= 2 * least
    spacing = numbers.abs() / (16 if nearest else 8)
    assert bool(((back - numbers).abs() <= spacing)[inside].all())
    assert bool((back[numbers == 0] == 0).all())
    assert bool((back * numbers >= 0).all())
    below = ~inside & (numbers != 0)
    assert bool((back[below].abs() <= 4 * least[below]).all())
    assert signed or bool((back[below] > 0).all())


def test_the_mean_of_many_roundings_is_the_number() -> None:
    draws = 20_000
    for signed, octaves in ((True, (0, 1, 8, 14, 15, 17)), (False, (0, 1, 8, 30))):
        for octave in octaves:
            number = 1.03 * 2.0**-octave * (-1 if signed else 1)
            numbers = torch.full((draws, BLOCK), number)
            numbers[:, 0] = 1.0
            back = rounded(numbers.view(-1), signed=signed, key=5).view(draws, BLOCK)
            assert bool((back[:, 0] == 1).all())
            others = back[:, 1:].double()
            error = 5 * float(others.std()) / others.numel() ** 0.5
            assert float(others.mean()) == pytest.approx(number, abs=error)
            assert others.unique().numel() == 2


def test_what_has_a_code_keeps_its_value_among_other_neighbours() -> None:
    torch.manual_seed(0)
    for signed in (True, False):
        numbers = rounded(torch.randn(640) ** (1 if signed else 2), signed=signed)
        shuffled = torch.randperm(640)
        assert rounded(numbers[shuffled], signed=signed, key=9).equal(numbers[shuffled])


def test_not_a_number_and_infinity_stay_so() -> None:
    for signed in (True, False):
        numbers = torch.ones(200)
        numbers[3], numbers[70], numbers[71] = float("nan"), float("inf"), -float("nan")
        numbers[72] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
        back = rounded(numbers, signed=signed, key=1)
        assert back.isnan().nonzero().flatten().tolist() == [3, 71, 72]
        assert back.isinf().nonzero().flatten().tolist() == [70]
        assert back[128:].equal(numbers[128:])


def test_nothing_is_rounded_as_nothing() -> None:
    held = Fp8.zeros(torch.zeros(0, 4, 4), signed=True)
    held.set_(torch.zeros(0, 4, 4))
    assert held.numbers().shape == (0, 4, 4)
    assert held.exponents.numel() == 0


def test_a_part_begins_at_its_own_block() -> None:
    torch.manual_seed(1)
    numbers = torch.randn(200, 3) * torch.logspace(-3, 3, 200)[:, None]
    held = Fp8.zeros(numbers, signed=True)
    held.set_(numbers)
    parts = [held.part(slice(first, first + 64)) for first in range(0, 200, 64)]
    assert torch.cat([part.numbers() for part in parts]).equal(held.numbers())


def make(shape: tuple[int, ...], dtype: torch.dtype, ages: int, seed: int) -> tuple[Any, ...]:
    """(parameter, gradient, m codes, their exponents, v codes, their exponents, age, table) as in a run's middle."""
    torch.manual_seed(seed)
    age = torch.randint(0, ages, (shape[0], *[1] * (len(shape) - 1)), dtype=torch.uint8) if ages else None
    table = torch.rand(max(1, ages), 2) + 0.5
    parameter, gradient = (torch.randn(shape).to(dtype) for _ in range(2))
    m, v = Fp8.zeros(parameter, signed=True), Fp8.zeros(parameter, signed=False)
    m.set_(torch.randn(shape) ** 3)
    v.set_(torch.rand(shape) ** 4)
    return parameter, gradient, m.codes, m.exponents, v.codes, v.exponents, age, table


def by_torch(parameter: Tensor, gradient: Tensor, *rest: Any) -> None:
    m_codes, m_exponents, v_codes, v_exponents, *others = rest
    update_by_torch(parameter, gradient, Fp8(m_codes, m_exponents, True), Fp8(v_codes, v_exponents, False), *others)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(
        [(1,), (63,), (65,), (511,), (1025,), (5000,), (40, 70), (3, 16, 16), (7, 32, 32), (0,), (0, 4, 4)]
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([0, 1, 5, 256]),
    st.integers(0, 2**63 - 1),
)
def test_compiled_is_what_torch_computes(shape: tuple[int, ...], dtype: torch.dtype, ages: int, key: int) -> None:
    ours, theirs = make(shape, dtype, ages, 1), make(shape, dtype, ages, 1)
    adamw_fp8_(*ours, CONSTANTS, key)
    by_torch(*theirs, CONSTANTS, key)
    torch.testing.assert_close(ours[0], theirs[0], rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    for i in (2, 3, 4, 5):  # the same noise: a sum on the border between two roundings may fall on either side
        assert float((ours[i] != theirs[i]).double().sum()) <= 1 + 0.001 * ours[i].numel()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_chunks_change_no_bit(compiled: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    function: Any = adamw_fp8_ if compiled else by_torch
    base, again = make((5000,), dtype, 5, 3), make((5000,), dtype, 5, 3)
    function(*base, CONSTANTS, 7)
    monkeypatch.setattr(update_module, "_CHUNK", 9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    function(*again, CONSTANTS, 7)
    assert all(a.equal(b) for a, b in zip(base[:6], again[:6], strict=True))


def test_the_operator_is_well_formed() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.smet.adamw_fp8_.default, (*make((40, 3), dtype, 4, 2), CONSTANTS, 5))


def test_torch_computes_a_parameter_with_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, strided = make((70, 64), torch.float32, 0, 4), make((70, 64), torch.float32, 0, 4)
    by_torch(*flat, CONSTANTS, 1)
    parameter = strided[0].t().contiguous().t()
    m, v = Fp8(strided[2], strided[3], True), Fp8(strided[4], strided[5], False)
    monkeypatch.setattr(update_module, "adamw_fp8_", None)
    update(parameter, strided[1], m, v, None, strided[7], CONSTANTS, 1)
    assert parameter.equal(flat[0])
    assert m.codes.equal(flat[2])


def optimizer_of(n: int, dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[nn.Parameter, SmetAdamW]:
    p = nn.Parameter(torch.zeros(n, dtype=dtype))
    return p, SmetAdamW([p], moments="fp8", **kwargs)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_moments_decay_whatever_their_neighbours_do(
    compiled: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant gradient beside them holds the block's scale up, so that a decay must be seen in the codes."""
    monkeypatch.setattr(update_module, "numba_is_installed", lambda: compiled)
    n = 8192
    p, optimizer = optimizer_of(n, dtype)
    p.grad = torch.ones(n, dtype=dtype)
    optimizer.step()
    for _ in range(1000):
        p.grad[::2] = 0
        optimizer.step()
    v = read_slots(optimizer.state[p], "exp_avg_sq").double()
    # 0.999^1000 of v after one step; its spread is that of a thousand roundings
    assert float(v[::2].mean()) == pytest.approx(0.3677e-3, rel=0.015)
    assert float(v[::2].std() / v[::2].mean()) < 0.35
    assert float(v[1::2].mean()) == pytest.approx(1 - 0.999**1001, rel=0.015)
    m = read_slots(optimizer.state[p], "exp_avg")
    assert float(m[::2].abs().max()) == 0
    assert float(m[1::2].mean()) == pytest.approx(1, rel=0.015)


def test_a_value_without_gradients_keeps_nothing_and_moves_nowhere() -> None:
    p, optimizer = optimizer_of(LEAST_VALUES)
    for _ in range(20):
        p.grad = torch.randn(LEAST_VALUES)
        p.grad[::3] = 0
        optimizer.step()
    assert not p[::3].any()
    for key in ("exp_avg", "exp_avg_sq"):
        assert not read_slots(optimizer.state[p], key)[::3].any()
        assert bool(read_slots(optimizer.state[p], key)[1::3].any())


def test_bytes_are_two_a_value_and_two_for_sixty_four() -> None:
    n = 64 * 1000
    p, optimizer = optimizer_of(n)
    tensors = [value for value in optimizer.state[p].values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == 2 * n + 2 * n // 64


@pytest.mark.parametrize(
    ("n", "dtype", "held"),
    [
        (LEAST_VALUES - 1, torch.float32, torch.float32),
        (LEAST_VALUES, torch.float32, torch.uint8),
        (LEAST_VALUES, torch.bfloat16, torch.uint8),
        (LEAST_VALUES, torch.float64, torch.float64),
    ],
)
def test_small_parameters_and_those_in_fp64_keep_their_precision(n: int, dtype: torch.dtype, held: torch.dtype) -> None:
    p, optimizer = optimizer_of(n, dtype)
    assert optimizer.state[p]["exp_avg"].dtype == optimizer.state[p]["exp_avg_sq"].dtype == held
    assert all((key in optimizer.state[p]) is (held == torch.uint8) for key in EXPONENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_small_training_follows_the_one_in_fp32(dtype: torch.dtype, weight_decay: float) -> None:
    """A regression on noisy data; its loss falls by a factor of twenty, and ends within three percent of fp32's."""
    losses = {}
    for moments in ("fp32", "fp8"):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)).to(dtype)
        teacher = nn.Linear(64, 64)
        optimizer = SmetAdamW(model.parameters(), lr=3e-3, weight_decay=weight_decay, moments=moments)
        ends = []
        for step in range(400):
            x = torch.randn(128, 64)
            loss = nn.functional.mse_loss(model(x.to(dtype)).float(), teacher(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ends += [float(loss.detach())] if step in range(300, 400) or step == 0 else []
        losses[moments] = ends[0], sum(ends[1:]) / 100
    assert losses["fp32"][1] < losses["fp32"][0] / 20
    assert losses["fp8"][1] == pytest.approx(losses["fp32"][1], rel=0.03)
