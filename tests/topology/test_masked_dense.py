"""SparseLinear under SmetAdamW is a dense layer with masked weight and masked gradient, in fp64, across updates."""

from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smet_train.config.compose import compose
from smet_train.optim import SmetAdamW
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.backends import BACKENDS
from smet_train.sparse.dense import gather_values, scatter_dense
from smet_train.sparse.sampling import first_index
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater

ROWS, COLUMNS, ACTIVE = 12, 10, 36
LR, BETA1, BETA2, EPS, DECAY = 0.02, 0.9, 0.999, 1e-8, 0.05
INTERVAL, STEPS = 10, 40


@dataclass(frozen=True)
class Method:
    local_step: bool
    warmup_steps: int
    moves: bool = True
    drop: str = "magnitude"
    grow: str = "random"
    micro_batches: int = 1


def preset(name: str, *overrides: str, micro_batches: int = 1) -> Method:
    """What ``method=NAME`` switches on, with a warm-up short enough for these runs."""
    config = compose([f"method={name}", *overrides])
    return Method(
        config.optimizer.local_step,
        min(config.optimizer.regrow_warmup_steps, 7),
        config.topology.enabled,
        config.topology.drop.name,
        config.topology.grow.name,
        micro_batches,
    )


METHODS = {
    **{name: partial(preset, name) for name in ("smet", "set", "static", "rigl", "smet_rigl")},
    "smet without warm-up": partial(preset, "smet", "optimizer.regrow_warmup_steps=0"),
    "warm-up alone": partial(preset, "smet", "optimizer.local_step=false"),
    "smet_rigl over micro-batches": partial(preset, "smet_rigl", micro_batches=3),
    "mest": partial(preset, "smet", "topology.drop=magnitude_and_gradient"),
    "mest and gradient over micro-batches": partial(
        preset, "rigl", "topology.drop=magnitude_and_gradient", micro_batches=2
    ),
}


@cache
def method_of(name: str) -> Method:
    return METHODS[name]()


def test_presets_differ_where_they_should() -> None:
    methods = {name: method_of(name) for name in ("smet", "set", "static", "rigl", "smet_rigl")}
    assert {name: (one.local_step, one.warmup_steps > 0, one.moves, one.grow) for name, one in methods.items()} == {
        "smet": (True, True, True, "random"),
        "set": (False, False, True, "random"),
        "static": (False, False, False, "random"),
        "rigl": (False, False, True, "gradient"),
        "smet_rigl": (True, True, True, "gradient"),
    }


Batch = tuple[Tensor, Tensor]


class MaskedDense:
    """The same equations on dense tensors, one at a time, with integer local steps; it shares no code with ours."""

    def __init__(self, weight: Tensor, mask: Tensor, method: Method, block: int) -> None:
        self.block = block
        self.weight, self.mask, self.method = weight.clone(), mask.clone(), method
        self.m, self.v = torch.zeros_like(weight), torch.zeros_like(weight)
        self.local = torch.zeros_like(weight)
        self.regrown = torch.zeros_like(mask)
        self.step_count = 0

    def gradient(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the gradient at all sites."""
        weight = (self.weight * self.mask).requires_grad_()
        loss = F.mse_loss(F.linear(x, weight), target)
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss.detach(), gradient

    def step(self, x: Tensor, target: Tensor) -> float:
        loss, gradient = self.gradient(x, target)
        gradient = gradient * self.mask
        self.step_count += 1
        self.local += 1
        self.m = BETA1 * self.m + (1 - BETA1) * gradient
        self.v = BETA2 * self.v + (1 - BETA2) * gradient**2
        t = self.local if self.method.local_step else torch.full_like(self.local, self.step_count)
        w = torch.ones_like(t)
        if self.method.warmup_steps:
            w = torch.where(self.regrown, (self.local / self.method.warmup_steps).clamp(max=1), w)
        update = w * (self.m / (1 - BETA1**t)) / ((self.v / (1 - BETA2**t)).sqrt() + EPS)
        self.weight = (self.weight - LR * update - LR * DECAY * self.weight) * self.mask
        return float(loss)

    def follow(self, new_mask: Tensor, probe: list[Batch]) -> None:
        """Take over the new topology; which weights must go and, by gradient, which must come is checked here."""
        dropped, grown = self.mask & ~new_mask, new_mask & ~self.mask
        assert int(dropped.sum()) == int(grown.sum()) > 0
        kept = self.mask & new_mask
        mean_gradient = sum((self.gradient(*batch)[1] for batch in probe), torch.zeros_like(self.weight)) / len(probe)
        score = self.over_blocks(self.weight.abs())
        if self.method.drop == "magnitude_and_gradient":
            score = score + 0.5 * self.over_blocks(mean_gradient.abs())
        assert score[dropped].max() <= score[kept].min() * (1 + 1e-12)
        if self.method.grow == "gradient":
            left_out, growth = ~self.mask & ~new_mask, self.over_blocks(mean_gradient.abs())
            assert growth[grown].min() >= growth[left_out].max() * (1 - 1e-12)
        for held in (self.weight, self.m, self.v, self.local):
            held[dropped | grown] = 0
        self.regrown = (self.regrown & kept) | grown
        self.mask = new_mask

    def over_blocks(self, dense: Tensor) -> Tensor:
        """The sum over each block, at all its weights."""
        b = self.block
        sums = dense.view(ROWS // b, b, COLUMNS // b, b).sum((1, 3))
        return sums.repeat_interleave(b, 0).repeat_interleave(b, 1)


def random_batch() -> Batch:
    return torch.randn(16, COLUMNS, dtype=torch.float64), torch.randn(16, ROWS, dtype=torch.float64)


def backward(layer: SparseLinear, x: Tensor, target: Tensor) -> None:
    F.mse_loss(layer(x), target).backward()


@pytest.mark.parametrize(
    ("backend", "block"),
    [
        (name, block)
        for name, backend in BACKENDS.items()
        for block in (1, 2)
        if backend.unsupported(Layout(4, 4, 1, block), torch.float64, torch.device("cpu")) is None
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_parameters_and_moments_follow_the_masked_dense_reference(
    name: str, backend: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are dropped and grown by the sums over their weights, and share one age."""
    monkeypatch.setattr("smet_train.topology.candidates.CHUNK_WEIGHTS", 3 * COLUMNS)
    method = method_of(name)
    torch.manual_seed(0)
    layout = Layout(ROWS, COLUMNS, ACTIVE // block**2, block)
    values = torch.randn(layout.values_shape, dtype=torch.float64)
    layer = SparseLinear(layout, first_index(layout, 5), values, None, backend)
    optimizer = SmetAdamW(
        [layer.values], LR, (BETA1, BETA2), EPS, DECAY,
        local_step=method.local_step, regrow_warmup_steps=method.warmup_steps, topology_moves=method.moves,
    )  # fmt: skip
    schedule = TopologySchedule(INTERVAL, 0.3, 0.1, "cosine", 1.0, STEPS)
    rules = MoveRules(drop=method.drop, grow=method.grow, drop_gradient_weight=0.5)
    updater = TopologyUpdater(
        {"layer": layer},
        optimizer,
        schedule if method.moves else None,
        seed=1,
        rules=rules,
        check_invariants=True,
    )

    def mask() -> Tensor:
        ones = torch.ones(layout.values_shape, dtype=torch.bool)
        return scatter_dense(ones, layer.index, layout)

    oracle = MaskedDense(layer.to_dense(), mask(), method, block)
    updates = 0
    for step in range(1, STEPS + 1):
        x, target = random_batch()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert oracle.step(x, target) == pytest.approx(float(loss.detach()), rel=1e-12)
        probe = [random_batch() for _ in range(method.micro_batches)]
        if updater.step(step, [partial(backward, layer, *batch) for batch in probe]):
            updates += 1
            assert layer.values.grad is None
            oracle.follow(mask(), probe)
        state = optimizer.state[layer.values]
        for ours, dense in [
            (layer.values.detach(), oracle.weight),
            (state["exp_avg"], oracle.m),
            (state["exp_avg_sq"], oracle.v),
        ]:
            torch.testing.assert_close(ours, gather_values(dense, layer.index, layout), rtol=1e-11, atol=1e-13)
            assert int((dense.view(-1) != 0).sum()) <= ACTIVE
    assert updates == (3 if method.moves else 0)
