from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from smet_train.errors import CheckpointError, ConfigError
from smet_train.optim import SmetAdamW
from smet_train.optim.smet_adamw import (
    age_factors,
    in_runs,
    local_steps,
    out_of_runs,
    settled_steps,
    updates_counted,
)


def parameter(n: int = 5, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    torch.manual_seed(n)
    return nn.Parameter(torch.randn(n, dtype=dtype))


def take_steps(optimizer: torch.optim.Optimizer, p: nn.Parameter, gradients: Tensor) -> None:
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("local_step", [True, False])
def test_equals_torch_adamw_while_nothing_is_regrown(weight_decay: float, local_step: bool) -> None:
    ours, theirs = parameter(), parameter()
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    optimizer = SmetAdamW([ours], **settings, local_step=local_step, topology_moves=True)
    oracle = torch.optim.AdamW([theirs], **settings)
    gradients = torch.randn(20, 5, dtype=torch.float64)
    take_steps(optimizer, ours, gradients)
    take_steps(oracle, theirs, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[ours][key], oracle.state[theirs][key], rtol=1e-12, atol=1e-14)


def regrow(optimizer: SmetAdamW, p: nn.Parameter, slots: list[int]) -> None:
    """What a topology update does to slots that are grown, by hand."""
    optimizer.note_topology_update(p)
    with torch.no_grad():
        for held in (p, *(s for s in optimizer.state[p].values() if isinstance(s, Tensor))):
            held[slots] = 0


@pytest.mark.parametrize("beta2", [0.999, 0.95])
def test_a_regrown_weight_under_constant_gradient_moves_by_lr_times_warmup(beta2: float) -> None:
    p = parameter(2)
    optimizer = SmetAdamW([p], lr=1e-3, betas=(0.9, beta2), eps=1e-12, regrow_warmup_steps=10, topology_moves=True)
    take_steps(optimizer, p, torch.randn(50, 2, dtype=torch.float64))
    regrow(optimizer, p, [1])
    for t in range(1, 16):
        before = float(p.detach()[1])
        take_steps(optimizer, p, torch.full((1, 2), 0.37, dtype=torch.float64))
        assert before - float(p.detach()[1]) == pytest.approx(1e-3 * min(1.0, t / 10), rel=1e-6)


@pytest.mark.parametrize(("beta2", "first", "largest", "at"), [(0.999, 3.1623, 6.5691, 12), (0.95, 0.4472, 1.0967, 20)])
def test_the_naive_shared_step_overshoots_by_the_closed_form(
    beta2: float, first: float, largest: float, at: int
) -> None:
    # With a shared step far along, the bias corrections are 1, so newborn moments give (1-b1^t)/sqrt(1-b2^t) * lr.
    p = parameter(2)
    optimizer = SmetAdamW(
        [p], lr=1e-3, betas=(0.9, beta2), eps=1e-12, local_step=False, regrow_warmup_steps=0, topology_moves=True
    )
    optimizer.state[p]["step"] = 100_000
    regrow(optimizer, p, [1])
    moved = []
    for _ in range(30):
        before = float(p.detach()[1])
        take_steps(optimizer, p, torch.full((1, 2), 0.37, dtype=torch.float64))
        moved.append((before - float(p.detach()[1])) / 1e-3)
    expected = [(1 - 0.9**t) / (1 - beta2**t) ** 0.5 for t in range(1, 31)]
    assert moved == pytest.approx(expected, rel=1e-6)
    assert moved[0] == pytest.approx(first, rel=1e-3)
    assert max(moved) == pytest.approx(largest, rel=1e-3)
    assert moved.index(max(moved)) + 1 == at


def test_the_warmup_alone_is_a_switch_of_its_own() -> None:
    # Shared step with warm-up: the naive step times t / W.
    p = parameter(2)
    optimizer = SmetAdamW([p], lr=1.0, eps=0.0, local_step=False, regrow_warmup_steps=4, topology_moves=True)
    optimizer.state[p]["step"] = 100_000
    regrow(optimizer, p, [1])
    for t in range(1, 7):
        before = float(p.detach()[1])
        take_steps(optimizer, p, torch.ones(1, 2, dtype=torch.float64))
        naive = (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
        assert before - float(p.detach()[1]) == pytest.approx(min(1.0, t / 4) * naive, rel=1e-6)


def test_local_steps_of_a_hand_written_history() -> None:
    # Updates after steps 10, 20, 30; now at step 34. Age 0 was grown after 30, age 3 is of the first topology.
    assert local_steps(34, [30, 20, 10]) == [(4, False), (14, False), (24, False), (34, True)]
    assert local_steps(3, []) == [(3, True)]


def follow(
    optimizer: SmetAdamW, p: nn.Parameter, steps: int, interval: int, kept: int, warmup: int, beta2: float
) -> None:
    """Train ``p``, regrown every ``interval`` steps but for its first ``kept`` slots, beside a reference that counts
    each slot's local step as an integer; they must be equal all the way."""
    n, draw = p.numel(), torch.Generator().manual_seed(0)
    exact, m, v = p.detach().clone(), torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    born, first = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    for step in range(1, steps + 1):
        g = torch.randn(n, dtype=torch.float64, generator=draw)
        take_steps(optimizer, p, g[None])
        t = (step - born).double()
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g * g
        w = torch.where(first, torch.ones_like(t), (t / warmup).clamp(max=1.0)) if warmup else 1
        exact -= 1e-3 * w * (m / (1 - 0.9**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach(), exact, rtol=1e-9, atol=1e-12)
        if step % interval == 0:
            grown = kept + torch.randperm(n - kept, generator=draw)[:2]
            regrow(optimizer, p, grown.tolist())
            exact[grown], m[grown], v[grown], born[grown], first[grown] = 0, 0, 0, step, False


@pytest.mark.parametrize(
    ("interval", "warmup", "beta2"),
    [(1, 0, 0.999), (1, 700, 0.999), (5, 0, 0.999), (2, 1500, 0.9)],
    ids=["every step", "a warm-up beyond 255 updates", "every fifth", "the warm-up alone is long"],
)
@pytest.mark.parametrize("known", [True, False])
def test_ages_follow_integer_local_steps_beyond_255_updates(
    interval: int, warmup: int, beta2: float, known: bool
) -> None:
    """Slots 0 to 4 are never regrown, and others live for hundreds of updates, so that a byte can't tell them apart."""
    steps = 280 * interval + 3
    schedule = {"topology_interval": interval, "topology_updates": steps // interval} if known else {}
    p = parameter(40)
    optimizer = SmetAdamW(
        [p],
        lr=1e-3,
        betas=(0.9, beta2),
        regrow_warmup_steps=warmup,
        topology_moves=True,
        **schedule,  # type: ignore[arg-type]
    )
    assert optimizer.state[p]["age"].dtype == (torch.int16 if known else torch.uint8)
    follow(optimizer, p, steps, interval, 5, warmup, beta2)
    assert optimizer.state[p]["age"].dtype == torch.int16
    assert optimizer.state[p]["age"][:5].tolist() == [steps // interval] * 5


@pytest.mark.parametrize(
    ("interval", "beta2", "dtype", "ends"), [(7, 0.95, torch.uint8, 255), (1, 0.8, torch.int16, 356)]
)
def test_ages_end_where_they_make_no_difference(interval: int, beta2: float, dtype: torch.dtype, ends: int) -> None:
    p = parameter(40)
    optimizer = SmetAdamW(
        [p], lr=1e-3, betas=(0.9, beta2), regrow_warmup_steps=20, topology_moves=True,
        topology_interval=interval, topology_updates=10**6,
    )  # fmt: skip
    assert optimizer.state[p]["age"].dtype == dtype
    follow(optimizer, p, 400 * interval, interval, 5, 20, beta2)
    assert optimizer.state[p]["age"].dtype == dtype
    assert len(optimizer.state[p]["moved_steps"]) == int(optimizer.state[p]["age"].max()) == ends


@pytest.mark.parametrize(
    ("betas", "warmup", "local_step", "settled"),
    [
        ((0.9, 0.999), 100, True, 15935),  # 0.999^15935 < 2^-23 <= 0.999^15934, where 1 + 2^-24 rounds to 1
        ((0.9, 0.999), 20_000, True, 20_000),
        ((0.9, 0.999), 100, False, 100),
        ((0.9, 0.999), 0, False, 0),
        ((0.0, 0.0), 0, True, 1),
    ],
)
def test_when_age_makes_no_difference(betas: tuple[float, float], warmup: int, local_step: bool, settled: int) -> None:
    group = {"betas": betas, "regrow_warmup_steps": warmup, "local_step": local_step}
    assert settled_steps(group, torch.float32) == settled
    if local_step:
        factors = [torch.tensor(age_factors(t, False, group)).tolist() for t in (settled, settled + 1, 3 * settled)]
        assert factors == [[1.0, 1.0]] * 3
    if settled > 1 and local_step:
        assert torch.tensor(age_factors(settled - 1, False, group)).tolist() != [1.0, 1.0]


@pytest.mark.parametrize(
    ("interval", "updates", "counted"),
    [(100, 10_000, 160), (63, 10_000, 253), (62, 10_000, 258), (5, 69, 69), (0, 0, 0)],
)
def test_how_far_ages_count(interval: int, updates: int, counted: int) -> None:
    group = {"betas": (0.9, 0.999), "regrow_warmup_steps": 100, "local_step": True}
    schedule = {"topology_interval": interval, "topology_updates": updates}
    assert updates_counted({**group, **schedule}, torch.float32) == counted


def test_a_state_in_one_byte_goes_on_where_two_are_needed_and_the_other_way_round() -> None:
    """From a run that is extended, or of a version that knew one byte alone; and from one that began with two."""
    torch.manual_seed(0)
    gradients = torch.randn(300, 40, dtype=torch.float64)

    def train(optimizer: SmetAdamW, p: nn.Parameter, steps: range) -> None:
        for step in steps:
            take_steps(optimizer, p, gradients[step : step + 1])
            regrow(optimizer, p, [step % 40])

    def make(updates: int) -> tuple[nn.Parameter, SmetAdamW]:
        p = parameter(40)
        return p, SmetAdamW([p], topology_moves=True, topology_interval=1, topology_updates=updates)

    whole, of_whole = make(300)
    train(of_whole, whole, range(300))
    for before, after in ((100, 300), (300, 100)):
        p, optimizer = make(before)
        train(optimizer, p, range(100))
        q, other = make(after)
        other.restore({q: "x"}, *optimizer.state_for_checkpoint({p: "x"}))
        q.data.copy_(p.data)
        assert other.state[q]["age"].dtype == torch.int16
        train(other, q, range(100, 300))
        assert torch.equal(q, whole)
        assert torch.equal(other.state[q]["age"], of_whole.state[whole]["age"])


@given(st.lists(st.integers(0, 2**40)) | st.lists(st.integers(0, 9)))
def test_steps_of_updates_are_saved_in_runs(steps: list[int]) -> None:
    assert out_of_runs(in_runs(steps)) == steps == out_of_runs(steps)


def test_thousands_of_updates_are_few_numbers_in_a_checkpoint() -> None:
    assert in_runs(range(16_000, 0, -1)) == [[16_000, -1, 16_000]]
    assert in_runs([90, 80, 70, 65, 60, 7]) == [[90, -10, 3], [65, -5, 2], [7, 0, 1]]
    assert in_runs([]) == []


@pytest.mark.parametrize("runs", [[[1, 2]], ["1"], [[1, 0.5, 2]], [[0, 0, 10**12]], [None]])
def test_what_is_no_steps_of_updates_is_refused(runs: list[Any]) -> None:
    p = parameter(4)
    optimizer = SmetAdamW([p], topology_moves=True)
    tensors, plain = optimizer.state_for_checkpoint({p: "x"})
    plain["x"]["moved_steps"] = runs
    with pytest.raises(CheckpointError, match=r"moved_steps are .*, which are no steps of updates"):
        optimizer.restore({p: "x"}, tensors, plain)


def test_a_state_whose_ages_had_ended_at_a_byte_goes_on() -> None:
    """As versions wrote it that ended ages at the 255th update: what is that old counts as the first topology does."""
    p = parameter(3)
    optimizer = SmetAdamW([p], topology_moves=True, topology_interval=1, topology_updates=1000)
    tensors, plain = optimizer.state_for_checkpoint({p: "x"})
    tensors["x.age"] = torch.tensor([255, 3, 0], dtype=torch.uint8)
    plain["x"] = {"step": 400, "moved_steps": list(range(400, 145, -1))}
    optimizer.restore({p: "x"}, tensors, plain)
    take_steps(optimizer, p, torch.ones(1, 3, dtype=torch.float64))
    optimizer.note_topology_update(p)
    state = optimizer.state[p]
    assert state["age"].tolist() == [256, 4, 1]
    steps = [local_steps(state["step"], state["moved_steps"])[age] for age in state["age"]]
    assert steps == [(401, True), (401 - 397, False), (1, False)]


@pytest.mark.parametrize("local_step", [True, False])
def test_a_parameter_that_misses_steps_counts_its_own(local_step: bool) -> None:
    """Against a reference that knows nothing of the loop's steps: the parameter misses single ones and whole intervals,
    and is regrown before its first step too."""
    n, warmup, draw = 12, 7, torch.Generator().manual_seed(2)
    p = parameter(n)
    optimizer = SmetAdamW(
        [p], lr=1e-2, regrow_warmup_steps=warmup, local_step=local_step, topology_moves=True, weight_decay=0.1
    )
    exact, m, v = p.detach().clone(), torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    taken, born, first = 0, torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    for step in range(1, 61):
        g = torch.randn(n, dtype=torch.float64, generator=draw)
        missed = step <= 6 or 20 <= step <= 32 or step % 7 == 0
        p.grad = None if missed else g.clone()
        optimizer.step()
        if not missed:
            taken += 1
            t = (taken - born).double()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w = torch.where(first, torch.ones_like(t), (t / warmup).clamp(max=1.0))
            shared = t if local_step else torch.full_like(t, taken)
            m_hat, v_hat = m / (1 - 0.9**shared), v / (1 - 0.999**shared)
            exact -= 1e-2 * (w * m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * exact)
        torch.testing.assert_close(p.detach(), exact, rtol=1e-12, atol=1e-14)
        if step % 5 == 0:
            grown = torch.randperm(n, generator=draw)[:4]
            regrow(optimizer, p, grown.tolist())
            exact[grown], m[grown], v[grown], born[grown], first[grown] = 0, 0, 0, taken, False
    assert optimizer.state[p]["step"] == taken


def test_ages_are_kept_only_where_the_topology_moves() -> None:
    for moves in (True, False):
        p = parameter()
        assert ("age" in SmetAdamW([p], topology_moves=moves).state[p]) is moves


def test_a_parameter_without_gradient_is_left_alone() -> None:
    p = parameter()
    before = p.detach().clone()
    optimizer = SmetAdamW([p])
    optimizer.step()
    assert p.equal(before)
    assert optimizer.state[p]["step"] == 0


def test_lr_scale_multiplies_the_learning_rate() -> None:
    plain, scaled = parameter(), parameter()
    gradients = torch.randn(3, 5, dtype=torch.float64)
    take_steps(SmetAdamW([plain], lr=0.03), plain, gradients)
    take_steps(SmetAdamW([{"params": [scaled], "lr_scale": 3.0}], lr=0.01), scaled, gradients)
    torch.testing.assert_close(plain, scaled, rtol=1e-12, atol=1e-14)


def test_second_moments_of_bf16_values_decay() -> None:
    p = parameter(dtype=torch.bfloat16)
    optimizer = SmetAdamW([p])
    take_steps(optimizer, p, torch.ones(1, 5, dtype=torch.bfloat16))
    start = optimizer.state[p]["exp_avg_sq"].clone()
    take_steps(optimizer, p, torch.zeros(1000, 5, dtype=torch.bfloat16))
    ratio = optimizer.state[p]["exp_avg_sq"] / start
    assert ratio.tolist() == pytest.approx([0.3677] * 5, rel=1e-3)  # 0.999^1000


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lr": -1.0},
        {"eps": -1.0},
        {"weight_decay": -0.1},
        {"regrow_warmup_steps": -1},
        {"betas": (0.9, 1.0)},
        {"moments": "int4"},
    ],
)
def test_settings_out_of_range_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        SmetAdamW([parameter()], **kwargs)


def two_of_a_kind(dtype: torch.dtype, n: int = 5, moments: str = "fp32") -> tuple[SmetAdamW, nn.Parameter]:
    p = parameter(n, dtype=dtype)
    return SmetAdamW([p], lr=1e-2, regrow_warmup_steps=7, topology_moves=True, moments=moments), p


@pytest.mark.parametrize(
    ("dtype", "n", "moments"),
    [
        (torch.float32, 5, "fp32"),
        (torch.bfloat16, 5, "fp32"),
        (torch.float64, 5, "fp32"),
        (torch.float32, 4100, "fp8"),
        (torch.bfloat16, 4100, "fp8"),
    ],
)
def test_a_restored_optimizer_goes_on_bit_for_bit(dtype: torch.dtype, n: int, moments: str) -> None:
    (first, p), (second, q) = two_of_a_kind(dtype, n, moments), two_of_a_kind(dtype, n, moments)
    gradients = torch.randn(40, n).to(dtype)
    take_steps(first, p, gradients[:20])
    first.note_topology_update(p)
    tensors, plain = first.state_for_checkpoint({p: "layer.values"})
    assert {tensor.dtype for tensor in tensors.values()} >= {torch.uint8}
    second.restore({q: "layer.values"}, {k: v.clone() for k, v in tensors.items()}, plain)
    with torch.no_grad():
        q.copy_(p)
    take_steps(first, p, gradients[20:])
    take_steps(second, q, gradients[20:])
    assert p.equal(q)
    for key, value in first.state[p].items():
        other = second.state[q][key]
        assert value.equal(other) and value.dtype == other.dtype if isinstance(value, Tensor) else value == other


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    p, q = parameter(), parameter()
    with_ages = SmetAdamW([p], topology_moves=True)
    without = SmetAdamW([q])
    tensors, plain = with_ages.state_for_checkpoint({p: "x"})
    with pytest.raises(CheckpointError, match=r"x\.age is on one side only; resume with the method"):
        without.restore({q: "x"}, tensors, plain)
    with pytest.raises(CheckpointError, match="x is on one side only"):
        with_ages.restore({p: "x"}, tensors, {})


@pytest.mark.parametrize("wrong", [torch.zeros(4, dtype=torch.float64), torch.zeros(5, dtype=torch.float32)])
def test_a_state_of_another_shape_or_dtype_is_refused(wrong: Tensor) -> None:
    optimizer, p = two_of_a_kind(torch.float64)
    tensors, plain = optimizer.state_for_checkpoint({p: "x"})
    with pytest.raises(CheckpointError, match=r"x\.exp_avg is \(\d,\) of torch\.float"):
        optimizer.restore({p: "x"}, {**tensors, "x.exp_avg": wrong}, plain)


def test_load_state_dict_keeps_every_dtype_and_the_new_groups_count() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(6, 5).bfloat16()
    first, second = (nn.Parameter(torch.ones(5, dtype=torch.bfloat16)) for _ in range(2))
    optimizer, other = (SmetAdamW([p], lr=0.1, topology_moves=True) for p in (first, second))
    take_steps(optimizer, first, gradients[:3])
    optimizer.note_topology_update(first)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[second]["age"].dtype == torch.uint8
    assert other.state[second]["exp_avg"].dtype == torch.float32
    second.data.copy_(first.data)
    for o in (optimizer, other):
        o.param_groups[0]["lr"] = 0.01  # as a scheduler does
    take_steps(optimizer, first, gradients[3:])
    take_steps(other, second, gradients[3:])
    assert torch.equal(first, second)
    assert optimizer.state[first]["moved_steps"] == other.state[second]["moved_steps"] == [3]


def test_load_state_dict_refuses_the_state_of_other_parameters() -> None:
    state = SmetAdamW([parameter(4)]).state_dict()
    with pytest.raises(CheckpointError, match="this run needs"):
        SmetAdamW([parameter(5)]).load_state_dict(state)


def test_a_group_that_is_added_later_is_updated() -> None:
    first, later = parameter(4), parameter(5)
    optimizer = SmetAdamW([first])
    optimizer.add_param_group({"params": [later]})
    before = later.detach().clone()
    take_steps(optimizer, later, torch.ones(1, 5, dtype=torch.float64))
    assert not torch.equal(later, before)
