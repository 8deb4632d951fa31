"""A run's settings from its folder alone."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smet_train.config.compose import compose, compose_run
from smet_train.config.plain import save_config, to_dict
from smet_train.config.saved import read_settings
from smet_train.config.schema import Config
from smet_train.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    save_config(compose(["+experiment=demo", "seed=7"]), tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def test_the_folder_gives_the_settings_and_overrides_come_on_top(run: Path) -> None:
    assert compose_run(run) == compose(["+experiment=demo", "seed=7"])
    assert compose_run(run, ["train.steps=9"]) == compose(["+experiment=demo", "seed=7", "train.steps=9"])
    assert compose_run(run, ["method=set"]).method == "set"
    assert compose_run(run, ["+debug=invariants"]).debug.check_invariants


@pytest.fixture
def named() -> Config:
    """Settings with a text in them."""
    return compose(["data=hub", "data.name=x"])


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("a\\${}:'\" ,[]#=~"), min_size=1).filter(str.strip))
def test_any_text_comes_back_as_it_was(run: Path, named: Config, text: str) -> None:
    named.data.name = text
    save_config(named, run / "config.yaml")
    assert compose_run(run).data.name == text


def test_a_run_that_began_from_another_one_goes_on_with_its_own(run: Path) -> None:
    def resume_of(saved: str) -> Any:
        config = compose([])
        config.checkpoint.resume = saved
        save_config(config, run / "config.yaml")
        return read_settings(run)["checkpoint"]["resume"]

    assert [resume_of(saved) for saved in ("auto", "never", "other/run")] == ["auto", "auto", "other/run"]
    (run / "checkpoints" / "step_00000003").mkdir(parents=True)
    assert resume_of("other/run") == "auto"


def test_a_setting_that_is_missing_is_its_default_and_is_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = to_dict(compose(["seed=7"]))
    del settings["train"]["log_interval"], settings["data"]["tokenizer"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with caplog.at_level(logging.WARNING):
        assert compose_run(run) == compose(["seed=7"])
    assert "has no data.tokenizer.file, " in caplog.text
    assert "train.log_interval; taken as the default" in caplog.text


def test_a_folder_that_is_no_run_is_named_with_what_is_near(run: Path) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean {run}\?"):
        read_settings(run.with_name("rum"))
    with pytest.raises(ConfigError, match=rf"holds some: {run}; resume one"):
        read_settings(run.parent)
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"is no run folder: it has no config.yaml; write for instance"):
        read_settings(run)


def test_a_config_that_can_not_be_opened_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"config.yaml can't be read \(Permission denied\); type the command that"):
        read_settings(run)


def test_a_failed_write_leaves_the_old_config(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "config.yaml").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"config.yaml can't be written \(No space left on device\)") as told:
        save_config(compose([]), run / "config.yaml")
    assert told.value.exit_status == 1
    assert (run / "config.yaml").read_bytes() == before
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
