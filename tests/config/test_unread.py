"""Settings without effect are named with the reason."""

import pytest

from smet_train.config.compose import compose
from smet_train.config.unread import without_effect


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "smet", "smet_rigl", "gmp"])
def test_a_preset_alone_has_nothing_without_effect(method: str) -> None:
    assert without_effect(compose([f"method={method}"])) == {}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["method=dense", "sparsity.density=0.3", "topology.interval=7"],
            {"every layer is dense": ["sparsity.density=0.3", "topology.interval=7"]},
        ),
        (
            ["method=static", "sparsity.density=0.3", "topology.grow=gradient", "optimizer.regrow_moments=keep"],
            {"the topology never moves": ["topology.grow=gradient", "optimizer.regrow_moments=keep"]},
        ),
        (
            ["method=gmp", "topology.drop_fraction=0.3", "topology.interval=7", "optimizer.regrow_moments=keep"],
            {"nothing is regrown": ["topology.drop_fraction=0.3", "optimizer.regrow_moments=keep"]},
        ),
        (
            ["topology.drop_schedule=constant", "topology.final_drop_fraction=0.1", "topology.drop_fraction=0.3"],
            {"the drop fraction is constant": ["topology.final_drop_fraction=0.1"]},
        ),
        (["topology.drop_schedule=constant", "topology.drop_fraction=0.3"], {}),
        (
            ["+experiment=tutorial", "model=auto", "model.config_file=config.json"],
            {"the model is that of model.config_file": ["model.layers=2"]},
        ),
        (
            ["+debug=quick", "model=auto", "model.config_file=config.json"],
            {
                "the model is that of model.config_file": [
                    "model.hidden_size=64",
                    "model.intermediate_size=128",
                    "model.layers=2",
                    "model.heads=2",
                ]
            },
        ),
    ],
)
def test_what_nothing_reads_is_named(overrides: list[str], told: dict[str, list[str]]) -> None:
    assert without_effect(compose(overrides)) == told
