"""The two ways of updating one parameter are the same function."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smet_train.optim import SmetAdamW
from smet_train.optim import update as update_module
from smet_train.optim.update import adamw_, update, update_by_torch
from smet_train.sparse.sampling import key_from

CONSTANTS = (0.1, 0.99, 0.01, 1e-8, -1e-2, -1e-4)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def make(shape: tuple[int, ...], dtype: torch.dtype, ages: int, seed: int) -> tuple[Any, ...]:
    """(parameter, gradient, m, v, age, table) with moments as in the middle of a run."""
    torch.manual_seed(seed)
    moment = torch.float64 if dtype == torch.float64 else torch.float32
    kind = torch.uint8 if ages <= 256 else torch.int16 if ages <= 2**15 else torch.int32
    age = torch.randint(0, ages, (shape[0], *[1] * (len(shape) - 1)), dtype=kind) if ages else None
    table = torch.rand(max(1, ages), 2, dtype=moment) + 0.5
    parameter, gradient, m = (torch.randn(shape).to(dtype) for _ in range(3))
    return parameter, gradient, m.to(moment), torch.rand(shape, dtype=moment), age, table


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1,), (1023,), (1025,), (5000,), (40, 70), (3, 16, 16), (7, 32, 32), (2, 64, 64)]),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 1, 5, 256, 1000, 40_000]),
    st.integers(0, 2**63 - 1),
)
def test_compiled_is_what_torch_computes(shape: tuple[int, ...], dtype: torch.dtype, ages: int, key: int) -> None:
    ours, theirs = make(shape, dtype, ages, 1), make(shape, dtype, ages, 1)
    adamw_(*ours, CONSTANTS, key)
    by_torch: Any = update_by_torch
    by_torch(*theirs, CONSTANTS, key)
    for a, b in zip(ours[2:4], theirs[2:4], strict=True):
        torch.testing.assert_close(a, b)
    if dtype == torch.bfloat16:  # the same noise: a sum on the border between two roundings may fall on either side
        assert float((ours[0] == theirs[0]).double().mean()) > 0.995 or ours[0].numel() < 10
        torch.testing.assert_close(ours[0], theirs[0], rtol=2**-7, atol=1e-6)
    else:
        torch.testing.assert_close(ours[0], theirs[0])


def test_the_operator_is_well_formed() -> None:
    for dtype in DTYPES:
        torch.library.opcheck(torch.ops.smet.adamw_.default, (*make((40, 3), dtype, 4, 2), CONSTANTS, 5))


def test_threads_and_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    function: Any
    for function in (adamw_, update_by_torch):
        for dtype in DTYPES:
            base, again = make((5000,), dtype, 5, 3), make((5000,), dtype, 5, 3)
            function(*base, CONSTANTS, 7)
            with monkeypatch.context() as patch:
                patch.setattr(update_module, "_CHUNK", 9)
                threads = torch.get_num_threads()
                try:
                    torch.set_num_threads(1)
                    function(*again, CONSTANTS, 7)
                finally:
                    torch.set_num_threads(threads)
            assert all(a.equal(b) for a, b in zip(base[:4], again[:4], strict=True))


@pytest.mark.parametrize("reason", ["numba", "strides", "half"])
def test_torch_computes_where_the_kernel_can_not(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    parameter, gradient, m, v, age, table = make((30, 4), torch.float32, 3, 4)
    if reason == "numba":
        monkeypatch.setattr(update_module, "numba_is_installed", lambda: False)
    if reason == "strides":
        parameter = parameter.t().contiguous().t()
    if reason == "half":
        parameter, gradient = parameter.half(), gradient.half()
    monkeypatch.setattr(update_module, "adamw_", None)
    before = parameter.clone()
    update(parameter, gradient, m, v, age, table, CONSTANTS, 1)
    assert not parameter.equal(before)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_number_alone_and_nothing_at_all_are_parameters_too(compiled: bool) -> None:
    function: Any = adamw_ if compiled else update_by_torch
    for shape in ((), (0,), (0, 4, 4)):
        tensors = [torch.ones(shape) for _ in range(4)]
        function(*tensors, None, torch.ones(1, 2), CONSTANTS, 1)
        assert shape != () or float(tensors[0]) < 1


@pytest.mark.parametrize("compiled", [True, False])
class TestBf16:
    """Rounding in the step itself; ``test_rounding`` has the rounding."""

    @pytest.fixture(autouse=True)
    def _path(self, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(update_module, "numba_is_installed", lambda: compiled)

    def test_updates_below_the_spacing_are_not_lost(self) -> None:
        p = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        optimizer = SmetAdamW([p], lr=2.0**-13, betas=(0.0, 0.0), eps=0.0)
        p.grad = -torch.ones_like(p)
        for _ in range(64):
            optimizer.step()
        # 64 * 2^-13 = 2^-7: one spacing. Plain bf16 addition would leave every value at 1.
        assert float(p.detach().double().mean()) == pytest.approx(1 + 2.0**-7, abs=5e-4)

    def test_noise_is_a_function_of_seed_place_and_step(self) -> None:
        def run(seed: int, place: int, steps_before: int) -> Tensor:
            parameters = [nn.Parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(2)]
            optimizer = SmetAdamW(parameters, lr=2.0**-9, betas=(0.0, 0.0), eps=0.0, seed=seed)
            optimizer.state[parameters[place]]["step"] = steps_before
            parameters[place].grad = -torch.ones_like(parameters[place])
            optimizer.step()
            return parameters[place].detach()

        base = run(1, 0, 4)
        assert run(1, 0, 4).equal(base)
        assert not any(run(*other).equal(base) for other in [(2, 0, 4), (1, 1, 4), (1, 0, 5)])

    def test_what_is_not_a_number_stays_so(self) -> None:
        p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        p.grad = torch.tensor([float("nan"), float("inf"), 1.0, 0.0], dtype=torch.bfloat16)
        SmetAdamW([p], lr=0.1).step()
        assert p[0].isnan()
        assert not p[2:].isnan().any()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_updated_as_the_whole_is(dtype: torch.dtype, compiled: bool) -> None:
    """Bit for bit: the noise of bf16 is drawn by an element's place, from which the key of a part begins."""
    torch.manual_seed(2)
    n, by = 3000, update if compiled else update_by_torch
    start = torch.randn(n).to(dtype), torch.randn(n).to(dtype), torch.randn(n) * 0.1, torch.rand(n)
    age, table = torch.randint(0, 3, (n,), dtype=torch.uint8), torch.rand(3, 2) + 0.5
    constants = 0.1, 0.999, 0.001, 1e-8, -1e-3, -1e-5
    whole, parts = ([tensor.clone() for tensor in start] for _ in range(2))
    p, g, m, v = whole
    by(p, g, m, v, age, table, constants, 2**63 - 5)
    for first, last in ((0, 1013), (1013, 1014), (1014, 3000)):
        p, g, m, v = (tensor[first:last] for tensor in parts)
        by(p, g, m, v, age[first:last], table, constants, key_from(2**63 - 5, first))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
