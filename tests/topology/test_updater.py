import logging
import math
from functools import partial

import pytest
import torch
from torch import nn

from smet_train.errors import ConfigError, LayoutError
from smet_train.optim import SmetAdamW, parameter_groups
from smet_train.sparse import SparseLinear, sparsify
from smet_train.topology import MoveRules, TopologySchedule, TopologyUpdater
from smet_train.topology.exploration import Exploration
from smet_train.topology.rules import DROPS, Drop
from smet_train.topology.updater import Backward


def build(
    density: float = 0.25, drop_fraction: float = 0.5, interval: int = 2
) -> tuple[dict[str, SparseLinear], TopologyUpdater]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 12), nn.Linear(12, 1))
    layers = sparsify(model, ["*"], density=density, seed=3)
    optimizer = SmetAdamW([layer.values for layer in layers.values()], topology_moves=True)
    schedule = TopologySchedule(interval, drop_fraction, drop_fraction, "constant", 1.0, 20)
    return layers, TopologyUpdater(
        layers, optimizer, schedule, seed=3, exploration=Exploration(layers), check_invariants=True
    )


def test_ordinary_steps_change_nothing() -> None:
    layers, updater = build()
    before = {name: layer.index.clone() for name, layer in layers.items()}
    assert updater.step(1) == {}
    assert all(layer.index.equal(before[name]) for name, layer in layers.items())


def test_an_update_drops_the_least_and_grows_as_many_elsewhere() -> None:
    layers, updater = build()
    before = {name: (layer.index.clone(), layer.values.detach().clone()) for name, layer in layers.items()}
    for state in updater.optimizer.state.values():
        state["step"] = 2
    event = updater.step(2)
    # floor(0.5 K) of K = 24, 24 and 3 active values.
    assert event == {
        "dropped": 25,
        "grown": 25,
        "density": 51 / 204,
        "drop_fraction": 0.5,
        "survived": None,
        "mean_age_steps": 2 * 26 / 51,
        "ever_active": (51 + 25) / 204,
    }
    for name, layer in layers.items():
        old_index, old_values = before[name]
        layer.layout.validate_index(layer.index)
        kept = set(layer.index.tolist()) & set(old_index.tolist())
        dropped = [s for s in old_index.tolist() if s not in kept]
        assert len(dropped) == layer.layout.n_active // 2
        weakest = old_index[old_values.abs().argsort()[: len(dropped)]]
        assert sorted(dropped) == sorted(weakest.tolist())


def test_an_update_is_done_once() -> None:
    _, updater = build()
    assert updater.step(2)
    assert not updater.due(2)
    assert updater.step(2) == {}


def test_what_was_done_is_remembered_across_a_restart() -> None:
    _, first = build()
    first.step(2)
    _, second = build()
    second.load_state_dict(first.state_dict(), first.tensors())
    assert not second.due(2)
    assert second.due(4)


def test_without_a_schedule_the_topology_stays() -> None:
    layers, updater = build()
    still = TopologyUpdater(layers, updater.optimizer, None, seed=3)
    assert not any(still.due(step) for step in range(100))
    assert still.step(2) == {}


def test_sites_are_a_function_of_seed_layer_and_step() -> None:
    layers, updater = build()
    again, other = build()
    updater.step(2)
    other.step(2)
    assert all(layer.index.equal(again[name].index) for name, layer in layers.items())
    updater.step(4)
    assert not all(layer.index.equal(again[name].index) for name, layer in layers.items())


def test_more_to_grow_than_there_is_room_for_is_clipped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    layers, updater = build(density=0.9, drop_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        event = updater.step(2)
        updater.step(4)
    assert event["grown"] == event["dropped"] == sum(layer.layout.n_inactive for layer in layers.values())
    assert len(caplog.records) == len(layers)
    assert "43 weights to regrow but only 10 inactive sites" in caplog.text
    for layer in layers.values():
        layer.layout.validate_index(layer.index)


def test_a_full_layer_has_nothing_to_move() -> None:
    layers, updater = build(density=1.0)
    before = {name: layer.index.clone() for name, layer in layers.items()}
    assert updater.step(2)["dropped"] == 0
    assert all(layer.index.equal(before[name]) for name, layer in layers.items())


def test_a_layer_that_the_loss_does_not_reach_keeps_its_topology() -> None:
    model = nn.ModuleDict({"used": nn.Linear(6, 6, bias=False), "idle": nn.Linear(6, 6, bias=False)})
    layers = sparsify(model, ["*"], density=0.5, seed=1)
    groups = parameter_groups(
        model, dict.fromkeys(layers, 0.5), lr_density_rule="none", weight_decay=0.0, topology_moves=True
    )
    schedule = TopologySchedule(
        interval=1, drop_fraction=0.4, final_drop_fraction=0.4, shape="constant", stop_at=1.0, total_steps=9
    )
    updater = TopologyUpdater(layers, SmetAdamW(groups, lr=1e-3), schedule, 1, rules=MoveRules(grow="gradient"))
    before = {name: layer.index.clone() for name, layer in layers.items()}
    moved = updater.step(1, [lambda: layers["used"](torch.randn(4, 6)).square().sum().backward()])
    assert moved["dropped"] == moved["grown"] == 7  # floor(0.4 * 18) of the one layer
    assert torch.equal(layers["idle"].index, before["idle"])
    assert not torch.equal(layers["used"].index, before["used"])


def test_growth_by_gradient_is_clipped_too_and_never_duplicates() -> None:
    layers, updater = build(density=0.9, drop_fraction=0.5)
    updater.rules = MoveRules(grow="gradient")
    before = {name: set(layer.index.tolist()) for name, layer in layers.items()}

    def backward() -> None:
        x = torch.randn(4, 12)
        for layer in layers.values():
            x = layer(x)
        x.square().sum().backward()

    event = updater.step(2, [backward])
    assert event["grown"] == sum(layer.layout.n_inactive for layer in layers.values())
    for name, layer in layers.items():
        layer.layout.validate_index(layer.index)
        assert len(set(layer.index.tolist()) - before[name]) == layer.layout.n_inactive


@pytest.mark.parametrize("block", [1, 3])
def test_a_layer_that_is_called_twice_grows_distinct_sites(block: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12))
    layers = sparsify(model, ["*"], density=0.5, seed=3, block=block)
    optimizer = SmetAdamW([layer.values for layer in layers.values()], topology_moves=True)
    schedule = TopologySchedule(2, 0.5, 0.5, "constant", 1.0, 20)
    updater = TopologyUpdater(
        layers, optimizer, schedule, seed=3, rules=MoveRules(grow="gradient"), check_invariants=True
    )
    before = set(layers["0"].index.tolist())
    event = updater.step(2, [lambda: model(model(torch.randn(4, 12)).tanh()).square().sum().backward()])
    assert event["grown"] == 36
    assert len(set(layers["0"].index.tolist()) - before) == 36 // block**2


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_a_layer_of_one_row_moves(grow: str) -> None:
    layers, updater = build(drop_fraction=0.7)
    updater.rules = MoveRules(grow=grow)
    row = layers["2"]
    assert row.layout.shape_text == "1x12"
    before = set(row.index.tolist())
    updater.step(2, [lambda: row(torch.randn(4, 12)).square().sum().backward()])
    row.layout.validate_index(row.index)
    assert len(set(row.index.tolist()) - before) == 2  # floor(0.7 * 3)


def test_every_move_is_checked_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, updater = build()
    monkeypatch.setattr("smet_train.topology.updater.apply_move", lambda *_, **__: None)
    with torch.no_grad():
        layers["0"].values.fill_(1.0)  # what nobody has moved is not zero where the move grew
    with pytest.raises(LayoutError, match="layer 0: 'values' is not zero at a slot grown in this update"):
        updater.step(2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoiled", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize(
    "rules",
    [
        MoveRules(grow="gradient"),
        MoveRules(drop="magnitude_and_gradient"),
        MoveRules(drop="magnitude_and_gradient", grow="gradient"),
    ],
    ids=lambda rules: f"{rules.drop} {rules.grow}",
)
def test_nothing_moves_by_a_gradient_that_is_not_finite(rules: MoveRules, spoiled: tuple[int, ...], bad: float) -> None:
    """In the one micro-batch, in the second of two, in both; all else goes on as ever."""
    layers, updater = build()
    updater.rules = rules

    def micro_batch(number: int, factor: float) -> None:
        y = torch.randn(4, 12, generator=torch.Generator().manual_seed(number))
        for layer in layers.values():
            y = layer(y)
        (y.square().sum() * factor).backward()

    def micro_batches(*numbers: int) -> list[Backward]:
        return [partial(micro_batch, number, bad if number in spoiled else 1.0) for number in numbers]

    numbers = (0,) if spoiled == (0,) else (0, 1)
    updater.step(2, micro_batches(7))
    assert updater.fault is None
    before = {name: (layer.index.clone(), layer.values.detach().clone()) for name, layer in layers.items()}
    ages = [state["age"].clone() for state in updater.optimizer.state.values()]
    event = updater.step(4, micro_batches(*numbers))
    assert updater.fault == "the gradient that the topology update looks at is not finite (layer 0)"
    assert (event["dropped"], event["grown"], event["survived"], event["drop_fraction"]) == (0, 0, 1.0, 0.5)
    for name, layer in layers.items():
        assert torch.equal(layer.index, before[name][0])
        assert torch.equal(layer.values, before[name][1])
    # an update that moves nothing is one all the same
    assert all(
        torch.equal(state["age"], age + 1) for state, age in zip(updater.optimizer.state.values(), ages, strict=True)
    )
    assert not updater.due(4)
    event = updater.step(6, micro_batches(7))
    assert updater.fault is None
    assert event["dropped"] == event["grown"] == 25


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("grow", ["random", "gradient", "nothing"])
def test_nothing_moves_by_weights_that_are_not_finite(grow: str, bad: float) -> None:
    layers, updater = build()
    updater.rules = MoveRules(grow=grow)
    updater.targets = dict.fromkeys(layers, 0.1)
    before = {name: layer.index for name, layer in layers.items()}
    with torch.no_grad():
        layers["1"].values[5] = bad
    event = updater.step(2, [lambda: layers["0"](torch.ones(1, 12)).sum().backward()])
    assert updater.fault == "the weights that the topology update looks at are not finite (layer 1)"
    assert event["dropped"] == event["grown"] == 0
    assert all(torch.equal(layer.index, before[name]) for name, layer in layers.items())


def test_a_score_of_ones_own_is_not_asked_about_a_gradient_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that gives NaN by itself is still told."""
    monkeypatch.setitem(DROPS, "own", Drop(lambda asked: asked.layer.values * math.nan, needs_gradient=True))
    layers, updater = build()
    updater.rules = MoveRules(drop="own")

    def backward(factor: float) -> None:
        (layers["0"](torch.ones(1, 12)).sum() * factor).backward()

    assert updater.step(2, [lambda: backward(math.inf)])["dropped"] == 0
    with pytest.raises(ConfigError, match=r"topology.drop=own must give one number .* with NaN in it"):
        updater.step(4, [lambda: backward(1.0)])


def test_the_ledger_tells_what_an_update_holds() -> None:
    _, updater = build(drop_fraction=0.5)
    assert [row.as_dict() for row in updater.ledger()] == [
        {"kind": "exploration", "bytes": 12 + 12 + 2, "dense_bytes": 0}
    ]
    updater.rules = MoveRules(grow="gradient")
    # the largest layer at once, and per site to grow an index and a score
    assert updater.ledger()[1].bytes == 96 * 4 + (12 + 12 + 1) * (4 + 4)


def test_sites_ever_active_are_not_told_of_a_run_that_has_not_kept_them(caplog: pytest.LogCaptureFixture) -> None:
    """What the topology had seen before is unknown, and a count from here on would be another figure."""
    _, updater = build()
    updater.load_state_dict({"last_step": 0, "ever_active": 0}, {})
    assert updater.exploration is None
    assert updater.tensors() == {}
    assert "sites ever active are not told" in caplog.text
