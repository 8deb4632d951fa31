"""Drop rules, kept moments and exploration, by hand and by property."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smet_train.errors import CheckpointError
from smet_train.optim import SmetAdamW, parameter_groups
from smet_train.sparse import SparseLinear, sparsify
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater, make_move
from smet_train.topology.exploration import Exploration, exploration_bytes
from smet_train.topology.scores import magnitude_and_gradient, soft_magnitude
from smet_train.topology.select import keep_highest


def test_magnitude_and_gradient_by_hand() -> None:
    scores = magnitude_and_gradient(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-4.0, 0.0, 1.0]), 0.5)
    assert scores.tolist() == [3.0, 2.0, 0.5]


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_soft_magnitude_keeps_one_of_two_as_often_as_it_should(temperature: float) -> None:
    """Of |theta| = 1 and 2, the larger is kept with probability 2^(1/T) / (1 + 2^(1/T))."""
    values, n = torch.tensor([1.0, -2.0]), 4000
    kept = sum(bool(keep_highest(soft_magnitude(values, temperature, key), 1)[1]) for key in range(n))
    weight = 2 ** (1 / temperature)
    expected = weight / (1 + weight)
    assert abs(kept / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_soft_magnitude_becomes_magnitude_and_drops_zeros_first() -> None:
    values = torch.linspace(0.1, 5, 50)
    assert torch.equal(keep_highest(soft_magnitude(values, 1e-6, 3), 20), keep_highest(values, 20))
    values[7] = 0.0
    assert not keep_highest(soft_magnitude(values, 1.0, 3), 1)[7]
    assert torch.equal(soft_magnitude(values, 1.0, 3), soft_magnitude(values, 1.0, 3))


def test_kept_moments_are_those_of_dropped_slots() -> None:
    index = torch.tensor([1, 4, 6, 8])
    move = make_move(index, torch.tensor([True, False, True, False]), torch.tensor([0, 7]))
    assert move.new_index_K.tolist() == [0, 1, 6, 7]
    assert move.gather_all(torch.tensor([10.0, 20.0, 30.0, 40.0])).tolist() == [20.0, 10.0, 30.0, 40.0]


def built(rules: MoveRules | None = None, *, explore: bool = True) -> tuple[dict[str, SparseLinear], TopologyUpdater]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(16, 16, bias=False), "b": nn.Linear(16, 8, bias=False)})
    layers = sparsify(model, ["*"], density=0.25, seed=1)
    groups = parameter_groups(
        model, dict.fromkeys(layers, 0.25), lr_density_rule="none", weight_decay=0.0, topology_moves=True
    )
    optimizer = SmetAdamW(groups, local_step=False, regrow_warmup_steps=0)
    for state in optimizer.state.values():
        state["exp_avg"].fill_(1.0)
    schedule = TopologySchedule(2, 0.5, 0.5, "constant", 1.0, 100)
    return layers, TopologyUpdater(
        layers,
        optimizer,
        schedule,
        1,
        rules=rules,
        exploration=Exploration(layers) if explore else None,
        check_invariants=True,
    )


@pytest.mark.parametrize("keep", [True, False])
def test_moments_are_zeroed_or_kept(keep: bool) -> None:
    layers, updater = built(MoveRules(keep_moments=keep))
    moved = updater.step(2)
    for layer in layers.values():
        moments = updater.optimizer.state[layer.values]["exp_avg"]
        assert int((moments == 0).sum()) == (0 if keep else layer.layout.n_active // 2)
    assert moved["dropped"] == 48


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 6), cut=st.integers(0, 6))
def test_exploration_counts_what_was_ever_active(steps: int, cut: int) -> None:
    layers, updater = built()
    seen = {name: set(layer.index.tolist()) for name, layer in layers.items()}
    last: dict[str, object] = {}
    for number in range(1, steps + 1):
        grown_before = {
            name: {s for s, age in zip(layer.index.tolist(), ages(updater, layer), strict=True) if age == 0}
            for name, layer in layers.items()
        }
        last = updater.step(2 * number)
        for name, layer in layers.items():
            seen[name] |= set(layer.index.tolist())
        if number > 1:
            kept = sum(len(grown_before[name] & set(layer.index.tolist())) for name, layer in layers.items())
            assert last["survived"] == kept / sum(map(len, grown_before.values()))
        else:
            assert last["survived"] is None
        if number == cut:
            state, bits = updater.state_dict(), {name: tensor.clone() for name, tensor in updater.tensors().items()}
            updater.load_state_dict(state, bits)
    assert last["ever_active"] == sum(map(len, seen.values())) / (256 + 128)


def ages(updater: TopologyUpdater, layer: SparseLinear) -> list[int]:
    listed: list[int] = updater.optimizer.state[layer.values]["age"].tolist()
    return listed


def test_mean_age_in_steps_by_hand() -> None:
    _, updater = built()
    for state in updater.optimizer.state.values():
        state["step"] = 2
    assert updater.step(2)["mean_age_steps"] == 1.0  # half of the values are 2 steps old, half are new
    layers, updater = built(MoveRules(), explore=False)
    moved = updater.step(2)
    assert (moved["ever_active"], updater.tensors(), updater.ledger()) == (None, {}, [])
    assert all(ages(updater, layer).count(0) == layer.layout.n_active // 2 for layer in layers.values())


def test_bits_of_other_layers_are_refused() -> None:
    _, updater = built()
    with pytest.raises(CheckpointError, match="of other layers"):
        updater.load_state_dict(updater.state_dict(), {"a": torch.zeros(32, dtype=torch.uint8)})


def test_a_bit_a_site_is_held() -> None:
    layers, _ = built()
    held = sum(bits.numel() for bits in Exploration(layers).bits.values())
    assert held == exploration_bytes(layers) == (256 + 128) // 8
