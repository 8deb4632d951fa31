"""Gradual magnitude pruning against a dense layer with a mask, in fp64; and its schedule by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from smet_train.errors import LayoutError
from smet_train.optim import SmetAdamW
from smet_train.sparse import SparseLinear, sparsify
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater
from smet_train.topology.apply import apply_shrink


def schedule(interval: int = 10, stop_at: float = 1.0, total_steps: int = 50) -> TopologySchedule:
    return TopologySchedule(interval, 0.2, 0.2, "constant", stop_at, total_steps)


def test_the_cubic_by_hand() -> None:
    cubic = schedule()  # updates after steps 10, 20, 30 and 40
    densities = [cubic.pruned_density(step, 0.2) for step in (0, 10, 20, 30, 40)]
    assert densities == pytest.approx([1.0, 0.2 + 0.8 * 0.421875, 0.2 + 0.8 * 0.125, 0.2 + 0.8 * 0.015625, 0.2])
    assert schedule(stop_at=0.5).pruned_density(20, 0.1) == pytest.approx(0.1)
    assert schedule(interval=100).pruned_density(50, 0.1) > 0.1


def built() -> tuple[SparseLinear, SmetAdamW, TopologyUpdater]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(10, 12, bias=False)}).double()
    layers = sparsify(model, ["a"], density=1.0)
    optimizer = SmetAdamW([layers["a"].values], 0.02, local_step=False, regrow_warmup_steps=0)
    updater = TopologyUpdater(layers, optimizer, schedule(), 1, rules=MoveRules(grow="nothing"), targets={"a": 0.2})
    return layers["a"], optimizer, updater


def test_equals_a_masked_dense_layer() -> None:
    layer, optimizer, updater = built()
    dense = nn.Parameter(layer.to_dense().clone())
    adam = torch.optim.AdamW([dense], 0.02, (0.9, 0.999), 1e-8, 0.0)
    mask = torch.ones_like(dense)
    counts = []
    for step in range(1, 51):
        x, target = torch.randn(16, 10, dtype=torch.float64), torch.randn(16, 12, dtype=torch.float64)
        F.mse_loss(layer(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        adam.zero_grad()
        F.mse_loss(F.linear(x, dense), target).backward()
        assert dense.grad is not None
        dense.grad.mul_(mask)
        adam.step()
        if updater.due(step):
            moved = updater.step(step)
            left = round(schedule().pruned_density(step, 0.2) * 120)
            assert updater.state_dict()["pruned"] == (left == 24)
            threshold = (dense.detach() * mask).abs().flatten().topk(left).values[-1]
            mask = ((dense.detach() * mask).abs() >= threshold).double()
            with torch.no_grad():
                dense.mul_(mask)
                for state in (adam.state[dense]["exp_avg"], adam.state[dense]["exp_avg_sq"]):
                    state.mul_(mask)
            assert (moved["grown"], moved["density"]) == (0, left / 120)
            counts.append(layer.layout.n_active)
        torch.testing.assert_close(layer.to_dense(), dense.detach(), rtol=1e-10, atol=1e-12)
        assert optimizer.state[layer.values]["exp_avg"].shape == layer.values.shape == layer.index.shape
    assert counts == [65, 36, 26, 24]


def test_a_shrunken_checkpoint_is_fitted() -> None:
    layer, _, updater = built()
    updater.fit({"a": 30})
    assert (layer.layout.n_active, layer.index.numel()) == (30, 30)
    updater.fit({"a": 30})
    assert layer.layout.n_active == 30


def test_nothing_left_or_state_of_another_shape_is_refused() -> None:
    layer, optimizer, _ = built()
    with pytest.raises(LayoutError, match="holds 1 to 120 active values, got 0"):
        apply_shrink("a", layer, torch.zeros(120, dtype=torch.bool), optimizer)
    optimizer.state[layer.values]["strange"] = torch.zeros(3)
    with pytest.raises(LayoutError, match=r"optimizer state 'strange' has shape \(3,\)"):
        apply_shrink("a", layer, torch.ones(120, dtype=torch.bool), optimizer)
