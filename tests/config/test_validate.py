import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smet_train.config.fields import Range, leaves, spell, value_at
from smet_train.config.paths import check_files
from smet_train.config.schema import Config, DataSource, Drop, Family, Grow, RegrowMoments
from smet_train.config.validate import validate
from smet_train.errors import ConfigError


def set_at(config: Config, key: str, value: object) -> None:
    *sections, name = key.split(".")
    setattr(value_at(config, ".".join(sections)) if sections else config, name, value)


def told(**settings: object) -> str:
    """The message about a configuration with these settings (``__`` for the dot)."""
    config = Config()
    for key, value in settings.items():
        set_at(config, key.replace("__", "."), value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    return str(error.value)


def test_the_defaults_are_valid() -> None:
    validate(Config())


RANGED = [leaf for leaf in leaves(Config()) if leaf.range is not None]


@pytest.mark.parametrize("leaf", RANGED, ids=lambda leaf: leaf.key)
def test_every_number_has_limits_and_each_is_checked(leaf: object) -> None:
    assert hasattr(leaf, "range")
    limits, key, default = leaf.range, leaf.key, leaf.default  # type: ignore[attr-defined]
    bad = [math.nan, math.inf, limits.at_least - 1, limits.above, limits.at_most + 1, limits.below]
    for value in bad:
        if limits.holds(value):
            continue
        config = Config()
        set_at(config, key, [value, value] if isinstance(default, list) else value)
        with pytest.raises(ConfigError, match=rf"{key}=.* is out of range .*: it must be"):
            validate(config)


def test_every_number_is_limited() -> None:
    unlimited = [
        leaf.key
        for leaf in leaves(Config())
        if isinstance(leaf.default, int | float | list) and not isinstance(leaf.default, bool) and leaf.range is None
    ]
    assert unlimited == ["plugins", "data.files", "sparsity.densities", "sparsity.exclude", "tracking.wandb_tags"]


def test_every_setting_says_what_it_means_in_one_line() -> None:
    for leaf in leaves(Config()):
        assert leaf.help
        assert "\n" not in leaf.help
        assert len(leaf.help) <= 100


@given(st.integers(1, 600), st.integers(1, 600))
def test_micro_batches_divide_the_batch_or_the_message_names_those_that_do(batch: int, micro: int) -> None:
    config = Config()
    config.train.batch_size, config.train.micro_batch_size = batch, micro
    if batch % micro == 0:
        validate(config)
        return
    with pytest.raises(ConfigError) as error:
        validate(config)
    text = str(error.value).partition("train.micro_batch_size=")[2].partition("write train.micro_batch_size=")[2]
    offered = text.partition(", or train.batch_size=")[0].replace(" or ", ", ").split(", ")
    assert offered
    assert all(batch % int(number) == 0 for number in offered)
    assert int(text.rpartition("train.batch_size=")[2]) % micro == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer__betas": [0.9]}, "optimizer.betas=[0.9] must be two numbers"),
        ({"topology__final_drop_fraction": 0.3}, "topology.final_drop_fraction=0.3 is larger than"),
        (
            {"topology__drop_temperature": 0.5},
            "topology.drop_temperature=0.5 is read with topology.drop=soft_magnitude",
        ),
        ({"topology__drop_gradient_weight": 0.5}, "is read with topology.drop=magnitude_and_gradient alone"),
        (
            {"topology__probe_steps": 4},
            "topology.probe_steps=4 is read with topology.grow=gradient or topology.drop=magnitude_and_gradient alone",
        ),
        ({"optimizer__regrow_moments": RegrowMoments.keep}, "write optimizer.local_step=false"),
        ({"sparsity__densities": ["x"]}, "'x' is no PATTERN=DENSITY"),
        (
            {"topology__grow": Grow.nothing, "topology__enabled": False},
            "topology.enabled=false with topology.grow=nothing never prunes",
        ),
        (
            {"topology__grow": Grow.nothing, "topology__interval": 50, "topology__stop_at": 0.5, "train__steps": 100},
            "topology.interval=50 leaves no update before step 50 (topology.stop_at x train.steps), so that every "
            "layer would stay dense; write for instance topology.interval=5",
        ),
        (
            {"topology__grow": Grow.nothing, "topology__drop": Drop.magnitude_and_gradient},
            "does not go with topology.grow=nothing",
        ),
        ({"sparsity__include": []}, "sparsity.include=[] names no layer"),
        ({"model__family": Family.auto}, "model.family=auto needs model.config_file"),
        ({"model__config_file": "x.json"}, "is read with model.family=auto alone"),
        ({"model__hidden_size": 513}, "model.heads=8 does not divide model.hidden_size=513"),
        ({"model__hidden_size": 24, "model__heads": 8}, "heads of odd size 3"),
        ({"model__kv_heads": 3}, "model.kv_heads=3 does not divide model.heads=8; write model.kv_heads=2 or"),
        ({"model__family": Family.gpt2, "model__kv_heads": 2}, "model.kv_heads=2 is for model.family=llama"),
        ({"data__files": ["a.txt"]}, "data.files=[a.txt] is not read by data.source=python_source"),
        ({"data__source": DataSource.text}, "data.source=text needs data.files"),
        ({"data__source": DataSource.hub}, "data.source=hub needs data.name"),
        ({"data__source": DataSource.jsonl, "data__files": ["a"], "data__name": "b"}, "data.name=b is not read"),
        ({"data__tokenizer__file": "a", "data__tokenizer__hub_name": "b"}, "are both given; leave one of them out"),
        (
            {"train__fused_backward_step": True, "train__max_loss_rise": 2.0},
            "can't pass a batch over; leave one of them",
        ),
        ({"data__split": " "}, "data.split=  is empty"),
        ({"data__source": DataSource.text, "data__files": [""]}, "data.files=[] is empty"),
        ({"tracking__wandb_project": ""}, "tracking.wandb_project='' is empty"),
        ({"tracking__wandb_project": "a/b"}, "tracking.wandb_project=a/b: wandb takes at most 128"),
        ({"tracking__wandb_project": "a" * 129}, "wandb takes at most 128 characters"),
        ({"tracking__wandb_tags": ["good", "a" * 65]}, "has 65 characters, wandb takes at most 64"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str) -> None:
    assert message in told(**settings)


def test_an_existing_checkpoint_is_left_to_the_trainer(tmp_path: Path) -> None:
    config = Config()
    config.checkpoint.resume = str(tmp_path)
    validate(config)
    check_files(config, tmp_path / "run")
    config.checkpoint.resume = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"checkpoint\.resume=.*nowhere does not exist"):
        check_files(config, tmp_path / "run")


def test_a_range_reads_as_it_holds() -> None:
    limits = Range(at_least=0, below=1)
    assert limits.text == ">= 0 and < 1"
    assert [limits.holds(number) for number in (-0.1, 0, 0.5, 1, math.nan)] == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (None, "null"), ([0.9, 1], "[0.9,1]"), (DataSource.text, "text"), (1e-8, "1e-08"), ("a", "a")],
)
def test_values_are_spelled_as_on_the_command_line(value: object, text: str) -> None:
    assert spell(value) == text
