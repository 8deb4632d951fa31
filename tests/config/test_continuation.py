"""What may change when a run goes on, and what is said and written of it."""

import json
from pathlib import Path

import pytest

from smet_train.config.compose import compose
from smet_train.config.continuation import (
    about_changed_files,
    changed_settings,
    changes_text,
    check_continuation,
    record_resume,
    refuse_changes,
)
from smet_train.config.paths import with_absolute_paths
from smet_train.config.plain import to_dict
from smet_train.errors import CheckpointError, DataError


def test_changes_name_key_and_both_values() -> None:
    old, new = to_dict(compose([])), to_dict(compose(["seed=2", "train.steps=9", "sparsity.density=0.3"]))
    assert changed_settings(old, new) == [
        ("seed", 1, 2),
        ("sparsity.density", 0.1, 0.3),
        ("train.steps", 10_000, 9),
    ]
    assert changed_settings(new, new) == []


def test_a_setting_that_the_older_version_did_not_have_counts_as_its_default() -> None:
    old, new = to_dict(compose([])), to_dict(compose([]))
    del old["seed"], old["tracking"]["exploration"]
    assert changed_settings(old, new) == []
    assert changed_settings(old, to_dict(compose(["seed=2"]))) == [("seed", 1, 2)]
    old["removed"] = 7
    assert changed_settings(old, new) == [("removed", 7, None)]


def test_the_same_file_by_another_path_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["data=text", "data.files=[a/../b*.txt,https://host/c.txt]", "data.cache_dir='~/cache'"])
    seen = with_absolute_paths(config)
    assert seen.data.files == [f"{tmp_path}/b*.txt", "https://host/c.txt"]
    assert seen.data.cache_dir == str(Path.home() / "cache")
    assert (seen.checkpoint.resume, config.data.files[0]) == ("auto", "a/../b*.txt")
    assert changed_settings(to_dict(config), to_dict(seen)) == []


def test_another_run_may_begin_with_these_weights_under_another_rule(tmp_path: Path) -> None:
    rule = [("optimizer.lr", 1e-3, 1e-4), ("train.batch_size", 4, 8)]
    refuse_changes(rule, tmp_path, own=False)
    with pytest.raises(
        CheckpointError, match=r"optimizer.lr=0.001, now optimizer.lr=0.0001 \(and 1 more\); set it back"
    ):
        refuse_changes(rule, tmp_path, own=True)
    with pytest.raises(CheckpointError, match=r"model.layers=2, now model.layers=3; set it back"):
        refuse_changes([("model.layers", 2, 3)], tmp_path, own=False)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.sequence_tokens=8", "data.sequence_tokens=256, now data.sequence_tokens=8"),
        ("data.tokenizer.vocab_size=300", "data.tokenizer.vocab_size=32000, now data.tokenizer.vocab_size=300"),
        ("data.tokenizer.file=/a.json", "data.tokenizer.file=null, now data.tokenizer.file=/a.json"),
        ("sparsity.include=['*q_proj']", "sparsity.include=null, now sparsity.include="),
    ],
)
def test_another_run_has_the_windows_and_the_vocabulary_of_these_weights(
    tmp_path: Path, override: str, told: str
) -> None:
    changes = changed_settings(to_dict(compose([])), to_dict(compose([override])))
    with pytest.raises(CheckpointError, match=told):
        refuse_changes(changes, tmp_path, own=False)


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_00000008"
    saved = {"config": to_dict(compose([])), "step": 8}
    with pytest.raises(
        CheckpointError, match=r"train.steps=5, but .*step_00000008 has done 8 steps already; write .*8"
    ):
        check_continuation(saved, compose(["train.steps=5"]), checkpoint, tmp_path)
    changes = check_continuation(saved, compose(["train.steps=8"]), checkpoint, tmp_path)
    assert changes == [("train.steps", 10_000, 8)]


@pytest.mark.parametrize(
    ("last_update", "step", "pruned", "steps", "least"),
    [
        (40, 41, None, 50, 51),
        (40, 50, None, 50, 51),
        (40, 50, None, 51, None),
        (40, 51, False, 60, 61),
        (90, 90, None, 91, None),
        (0, 3, None, 10, 11),
        (90, 95, False, 100, 101),  # of a run that was to be longer
        (40, 45, True, 50, None),
    ],
)
def test_a_run_that_prunes_is_not_ended_before_its_density(
    tmp_path: Path, last_update: int, step: int, pruned: bool | None, steps: int, least: int | None
) -> None:
    prunes = ["method=gmp", "topology.interval=10", "topology.stop_at=1"]
    saved = {
        "config": to_dict(compose([*prunes, "train.steps=100"])),
        "step": step,
        "topology": {"last_step": last_update} | ({} if pruned is None else {"pruned": pruned}),
    }
    config = compose([*prunes, "train.steps=100"])
    config.train.steps = steps
    if least is None:
        check_continuation(saved, config, tmp_path / "checkpoints" / "step_00000040", tmp_path)
        return
    with pytest.raises(CheckpointError, match=f"train.steps={steps} leaves no update .* write train.steps={least} or"):
        check_continuation(saved, config, tmp_path / "checkpoints" / "step_00000040", tmp_path)


def test_another_run_has_updates_of_its_own_in_which_to_prune(tmp_path: Path) -> None:
    saved = {
        "config": to_dict(compose(["method=gmp", "topology.interval=10", "train.steps=200"])),
        "step": 90,
        "topology": {"last_step": 90, "pruned": False},
    }
    config = compose(["method=gmp", "topology.interval=60", "train.steps=121"])
    other = tmp_path / "other" / "checkpoints" / "step_00000090"
    check_continuation(saved, config, other, tmp_path)
    config.train.steps = 110
    with pytest.raises(CheckpointError, match="train.steps=110 leaves no update .* write train.steps=121 or more"):
        check_continuation(saved, config, other, tmp_path)


CONSTANT = ["optimizer.schedule=constant", "optimizer.warmup_fraction=0"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "the learning rate and the topology updates from here on follow a run of 8 steps"),
        (["method=dense"], "the learning rate from here on follows a run of 8 steps"),
        (CONSTANT, "the topology updates from here on follow a run of 8 steps"),
        ([*CONSTANT, "method=static"], None),
        ([*CONSTANT, "topology.drop_schedule=constant", "topology.final_drop_fraction=0.2"], None),
    ],
)
def test_another_length_says_what_follows_it(overrides: list[str], told: str | None) -> None:
    lines = changes_text([("train.steps", 6, 8)], compose([*overrides, "train.steps=8"]))
    assert lines == ["changed     train.steps=8 (was 6)"] + ([f"schedules   {told}"] if told else [])
    assert len(changes_text([("checkpoint.keep", 3, 1)], compose([]))) == 1


def test_each_resume_is_a_line_that_says_from_where(tmp_path: Path) -> None:
    record_resume(tmp_path, tmp_path / "checkpoints" / "step_00000003", 3, [("checkpoint.keep", 3, 1)])
    record_resume(tmp_path, tmp_path.parent / "other", 4, [])
    first, second = map(json.loads, (tmp_path / "resumes.jsonl").read_text().splitlines())
    assert first["from"] == "checkpoints/step_00000003"
    assert (first["step"], first["changed"]) == (3, {"checkpoint.keep": [3, 1]})
    assert second["from"] == str(tmp_path.parent / "other")
    assert set(first) == set(second) == {"time", "version", "from", "step", "changed"}


def test_a_line_that_can_not_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "resumes.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"resumes.jsonl can't be written \(Is a directory\)") as told:
        record_resume(tmp_path, tmp_path / "checkpoints" / "step_00000003", 3, [])
    assert told.value.exit_status == 1


@pytest.mark.parametrize(("key", "named"), [("data.files", True), ("train.steps", False)])
def test_an_error_of_the_data_names_files_that_have_changed(key: str, named: bool) -> None:
    told = str(about_changed_files(DataError("other data"), [(key, ["a"], ["b"])]))
    assert told == ("data.files=[b] instead of data.files=[a]: other data" if named else "other data")
