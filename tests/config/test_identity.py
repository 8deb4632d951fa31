from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from smet_train.config import sharded, unread
from smet_train.config.compose import compose
from smet_train.config.continuation import CHANGEABLE_KEYS, FIXED_KEYS, SAME_MODEL_KEYS
from smet_train.config.fields import leaves, matches
from smet_train.config.identity import VOLATILE_KEYS, default_run_folder, fresh_folder, lasting_settings, run_identity
from smet_train.config.paths import PATH_KEYS
from smet_train.config.plain import flatten, save_config, to_dict
from smet_train.config.schema import Config

VOLATILE = ["train.steps=1", "train.device=cpu", "train.eval_interval=7", "train.log_interval=7", "checkpoint.keep=9"]
VOLATILE += ["checkpoint.interval=9", "tracking.probe_windows=9", "data.prefetch_batches=0", "data.cache_dir=x"]
VOLATILE += ["debug.check_invariants=true"]
LASTING = ["seed=2", "model.layers=3", "data.sequence_tokens=8", "sparsity.density=0.3", "topology.interval=7"]
LASTING += [
    "optimizer.lr=1",
    "train.batch_size=1024",
    "train.precision=bf16",
    "method=set",
    "data.tokenizer.vocab_size=300",
]


def test_a_run_keeps_its_name_when_what_changes_is_volatile() -> None:
    same = run_identity(compose([]))
    assert {run_identity(compose([override])) for override in VOLATILE} == {same}
    assert len({same, *(run_identity(compose([override])) for override in LASTING)}) == 1 + len(LASTING)


LISTS: dict[str, Iterable[str]] = {
    "fixed": FIXED_KEYS,
    "changeable": CHANGEABLE_KEYS,
    "volatile": VOLATILE_KEYS,
    "of the model": SAME_MODEL_KEYS,
    "paths": PATH_KEYS,
    "without effect": {key for _, keys, _ in unread.RULES for key in keys},
    "switches": unread.SWITCHES,
    "not when sharded": [key for key, *_ in sharded.REFUSED],
}


@pytest.mark.parametrize("name", LISTS)
def test_every_entry_of_every_list_of_settings_is_a_setting_or_a_section(name: str) -> None:
    keys = [leaf.key for leaf in leaves(Config())]
    for entry in LISTS[name]:
        assert any(matches(key, [entry]) for key in keys), entry


def test_every_setting_may_change_or_may_not() -> None:
    for leaf in leaves(Config()):
        assert matches(leaf.key, FIXED_KEYS) != matches(leaf.key, CHANGEABLE_KEYS), leaf.key
        if matches(leaf.key, VOLATILE_KEYS):
            assert not matches(leaf.key, SAME_MODEL_KEYS), leaf.key


def test_a_setting_matches_by_its_whole_name_or_by_its_section() -> None:
    for entry, matched in (("train.steps", True), ("train.", True), ("train.step", False), ("train", False)):
        assert matches("train.steps", [entry]) == matched
    volatile = {"plugins": [], "train": {"steps": 1, "steps_more": 2}, "data": {"retries": 1}}
    assert lasting_settings(volatile) == {"train.steps_more": 2}


def test_plain_settings_are_yaml_and_hold_every_setting(tmp_path: Path) -> None:
    config = compose(["+experiment=demo"])
    save_config(config, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == to_dict(config)
    assert list(flatten(to_dict(config))) == [leaf.key for leaf in leaves(Config())]


def test_never_takes_a_fresh_folder_and_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose([])
    folder = default_run_folder(config, "demo")
    assert folder == Path("outputs") / f"demo-{run_identity(config)}"
    folder.mkdir(parents=True)
    assert default_run_folder(config, "demo") == folder
    never = compose(["checkpoint.resume=never"])
    first = default_run_folder(never, "demo")
    assert first == (tmp_path / folder).with_name(f"{folder.name}-2")
    first.mkdir()
    assert default_run_folder(never, "demo") == first
    fresh_folder.cache_clear()
    assert default_run_folder(never, "demo").name == f"{folder.name}-3"


def test_a_checkpoint_of_the_same_run_leads_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose([])
    folder = default_run_folder(config, "demo").with_name(default_run_folder(config, "demo").name + "-2")
    step = folder / "checkpoints" / "step_00000003"
    step.mkdir(parents=True)
    config.checkpoint.resume = str(step)
    assert default_run_folder(config, "demo") == folder
    elsewhere = tmp_path / "other" / "step_00000003"
    elsewhere.mkdir(parents=True)
    config.checkpoint.resume = str(elsewhere)
    assert default_run_folder(config, "demo").name.startswith(f"demo-{run_identity(config)}-from-")
