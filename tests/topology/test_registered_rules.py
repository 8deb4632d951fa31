"""Rules of the user's: asked with what they need, and held to what an update takes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smet_train import SparseTraining
from smet_train.errors import ConfigError
from smet_train.topology import MoveRules, Question, register_drop, register_grow
from smet_train.topology.rules import DROPS, GROWS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    drops, grows = dict(DROPS), dict(GROWS)
    yield
    DROPS.clear()
    DROPS.update(drops)
    GROWS.clear()
    GROWS.update(grows)


def move(rules: MoveRules, **settings: Any) -> tuple[SparseTraining, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8))
    training = SparseTraining(
        model,
        density=0.5,
        include=["*"],
        lr=0.1,
        total_steps=9,
        interval=1,
        drop_fraction=0.5,
        rules=rules,
        **settings,
    )
    before = training.layers["0"].index
    x = torch.randn(3, 12)
    training.after_step(lambda: model(x).square().sum().backward())
    return training, before


def first_inactive(asked: Question, n_grow: int) -> Tensor:
    inactive = torch.ones(asked.layer.layout.sites, dtype=torch.bool)
    inactive[asked.layer.index.long()] = False
    return inactive.nonzero().squeeze(1)[:n_grow].flip(0)


@pytest.mark.parametrize("block", [1, 4])
def test_the_least_scores_go_and_the_chosen_sites_come(block: int) -> None:
    seen: list[Question] = []

    def by_slot(asked: Question) -> Tensor:
        seen.append(asked)
        assert asked.gradient is not None
        assert asked.gradient.shape == asked.layer.values.shape
        return torch.arange(asked.layer.layout.n_active)

    register_drop("by_slot", by_slot, needs_gradient=True)
    register_grow("first_inactive", first_inactive)
    training, before = move(MoveRules("by_slot", "first_inactive"), block=block)
    layout = training.layers["0"].layout
    assert training.topology.schedule is not None
    n = int(training.topology.schedule.fraction(1) * layout.n_active)
    after = set(training.layers["0"].index.tolist())
    moved = len(before) - len(after & set(before.tolist()))
    assert moved == n > 0
    assert after >= set(before[moved:].tolist())
    inactive = [site for site in range(layout.sites) if site not in before.tolist()]
    assert after >= set(inactive[:moved])
    assert [asked.step for asked in seen] == [1]


@pytest.mark.parametrize(
    "choose",
    [
        lambda asked, n: first_inactive(asked, n - 1),
        lambda asked, n: asked.layer.index[:n],
        lambda asked, n: first_inactive(asked, 1).expand(n),
        lambda asked, n: first_inactive(asked, n) + asked.layer.layout.sites,
        lambda asked, n: first_inactive(asked, n) - asked.layer.layout.sites,
    ],
    ids=["too few", "active", "twice", "beyond", "negative"],
)
def test_sites_that_can_not_grow_are_refused(choose: Any) -> None:
    register_grow("wrong", choose)
    with pytest.raises(ConfigError, match=r"topology.grow=wrong must give \d+ distinct inactive sites of the 96"):
        move(MoveRules(grow="wrong"))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda asked: asked.layer.values[1:], r"for each of the 48 slots of layer 0, not \(47,\)"),
        (lambda asked: asked.layer.values * torch.nan, "with NaN in it"),
    ],
)
def test_scores_that_can_not_rank_are_refused(score: Any, message: str) -> None:
    register_drop("wrong", score)
    with pytest.raises(ConfigError, match=message):
        move(MoveRules(drop="wrong"))


def test_unknown_names_and_pruning_by_gradients_are_refused() -> None:
    with pytest.raises(ConfigError, match="topology.drop=magnitud is unknown; write one of magnitude,"):
        MoveRules(drop="magnitud")
    with pytest.raises(ConfigError, match="topology.grow=rigl is unknown; write one of random, gradient"):
        MoveRules(grow="rigl")
    with pytest.raises(ConfigError, match="looks at gradients, which topology.grow=nothing has not"):
        MoveRules("magnitude_and_gradient", "nothing")
