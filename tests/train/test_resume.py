import errno
import json
from pathlib import Path

import pytest

from smet_train.errors import CheckpointError
from smet_train.train import files
from smet_train.train.checkpoint import Keep, checkpoint_steps, save_checkpoint
from smet_train.train.resume import choose_checkpoint, is_finished, refuse_to_overwrite, set_later_aside
from smet_train.train.snapshot import Snapshot


def run_with(folder: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(folder / "checkpoints", step, Snapshot({}, {"step": step}), Keep(10))
    return folder


def step_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:08d}"


def test_auto_takes_the_newest_or_starts_afresh(tmp_path: Path) -> None:
    assert choose_checkpoint("auto", tmp_path) is None
    assert choose_checkpoint("auto", run_with(tmp_path, 5, 10)) == step_path(tmp_path, 10)


def test_never_starts_afresh_and_refuses_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    assert choose_checkpoint("never", tmp_path) is None
    with pytest.raises(CheckpointError, match=r"checkpoint\.resume=never: .* holds a run already"):
        choose_checkpoint("never", run_with(tmp_path, 5))


@pytest.mark.parametrize("form", ["{run}", "{run}/checkpoints", "{run}/checkpoints/step_00000010"])
def test_a_path_names_a_run_its_checkpoints_or_one_of_them(tmp_path: Path, form: str) -> None:
    other = run_with(tmp_path / "other", 5, 10)
    assert choose_checkpoint(form.format(run=other), tmp_path / "new") == step_path(other, 10)


def test_once_a_run_has_checkpoints_of_its_own_it_goes_on_from_them(tmp_path: Path) -> None:
    other, own = run_with(tmp_path / "other", 10), run_with(tmp_path / "own", 15)
    assert choose_checkpoint(str(other), own) == step_path(own, 15)


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    run_with(tmp_path, 5, 10, 15)
    assert choose_checkpoint(str(step_path(tmp_path, 5)), tmp_path) == step_path(tmp_path, 5)
    assert checkpoint_steps(tmp_path / "checkpoints") == [5, 10, 15]  # not before the run goes on
    set_later_aside(step_path(tmp_path, 5))
    assert checkpoint_steps(tmp_path / "checkpoints") == [5]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000005", "superseded_00000010", "superseded_00000015"]


def test_a_run_goes_back_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The command that it went back by, typed again after a crash, goes on from what came of it."""
    run_with(tmp_path, 5)
    back = str(step_path(tmp_path, 5))
    for step in (6, 7):
        plain = {"step": step, "config": {"checkpoint": {"resume": back}}}
        save_checkpoint(tmp_path / "checkpoints", step, Snapshot({}, plain), Keep(2))
    assert not Path(back).exists()  # deleted by rotation
    assert choose_checkpoint(back, tmp_path) == step_path(tmp_path, 7)
    assert f"which this run wrote after it had gone back to {back}" in caplog.text
    other = str(step_path(tmp_path, 6))
    assert choose_checkpoint(other, tmp_path) == Path(other)  # to which it has not gone back
    assert choose_checkpoint(str(step_path(tmp_path, 7)), tmp_path) == step_path(tmp_path, 7)


def test_the_record_of_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    events = [{"event": "train", "step": step} for step in range(5000)]
    lines = [json.dumps(event) for event in [*events, {"event": "end", "step": 10, "reason": "finished"}]]
    metrics.write_text("\n".join(lines) + "\n")
    assert is_finished(tmp_path, None, 10)
    refuse_to_overwrite(tmp_path, None, 10)
    told = "holds a run that was finished at step 10, and its checkpoints are gone; restore one"
    for checkpoint, steps in ((None, 20), (tmp_path / "other" / "checkpoints" / "step_00000005", 10)):
        with pytest.raises(CheckpointError, match=told):
            refuse_to_overwrite(tmp_path, checkpoint, steps)
    metrics.write_text("\n".join(lines[:-1]) + "\n")
    refuse_to_overwrite(tmp_path, None, 20)


def test_a_path_that_is_not_there_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.resume=/not/there does not exist; write auto, never"):
        choose_checkpoint("/not/there", tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        choose_checkpoint(str(tmp_path / "x"), tmp_path)


def test_finished_means_all_steps_taken_and_the_end_written_down(tmp_path: Path) -> None:
    run_with(tmp_path, 10)
    path, metrics = step_path(tmp_path, 10), tmp_path / "metrics.jsonl"

    def ended(*lines: str) -> bool:
        metrics.write_text("\n".join(lines))
        return is_finished(tmp_path, path, 10)

    end = json.dumps({"event": "end", "step": 10, "reason": "finished"})
    assert not is_finished(tmp_path, None, 10)
    assert not is_finished(tmp_path, path, 10)  # no metrics
    assert ended("{}", end)
    assert not is_finished(tmp_path, path, 11)
    assert not ended(json.dumps({"event": "end", "reason": "SIGTERM"}))
    assert not ended(end, '{"event": "ev')
    assert not ended()


def damage(path: Path) -> None:
    (path / "state.json").write_text("x")


def test_the_newest_good_one_is_used_and_the_broken_one_keeps_all_but_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_with(tmp_path, 5, 10, 15)
    damage(step_path(tmp_path, 15))
    assert choose_checkpoint("auto", tmp_path) == step_path(tmp_path, 10)
    (record,) = caplog.records
    assert "step_00000015 can't be used: state.json has 1 bytes, not 12; going on from step_00000010" in record.message
    assert checkpoint_steps(tmp_path / "checkpoints") == [5, 10]
    assert (tmp_path / "checkpoints" / "broken_00000015" / "state.json").read_text() == "x"
    # once more at the same step
    run_with(tmp_path, 15)
    damage(step_path(tmp_path, 15))
    choose_checkpoint("auto", tmp_path)
    assert (tmp_path / "checkpoints" / "broken_00000015-2").is_dir()


def test_older_ones_are_checked_on_request_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_with(tmp_path, 5, 10)
    damage(step_path(tmp_path, 5))
    assert choose_checkpoint("auto", tmp_path) == step_path(tmp_path, 10)
    assert not caplog.records
    assert choose_checkpoint("auto", tmp_path, check_all=True) == step_path(tmp_path, 10)
    assert "step_00000005 can't be used" in caplog.text


def test_if_none_is_good_the_run_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    run_with(tmp_path, 5, 10)
    damage(step_path(tmp_path, 5))
    (step_path(tmp_path, 10) / "manifest.json").unlink()
    told = "step_00000010: manifest.json is missing; step_00000005: state.json has 1 bytes, not 11"
    with pytest.raises(CheckpointError, match=rf"no checkpoint in .* can be used \({told}\); restore one") as caught:
        choose_checkpoint("auto", tmp_path)
    assert caught.value.exit_status == 1
    assert checkpoint_steps(tmp_path / "checkpoints") == [5, 10]


def test_a_damaged_checkpoint_that_is_named_is_an_error(tmp_path: Path) -> None:
    run_with(tmp_path / "other", 5, 10)
    damage(step_path(tmp_path / "other", 10))
    with pytest.raises(CheckpointError, match="step_00000010 can't be used: state.json has 1 bytes"):
        choose_checkpoint(str(step_path(tmp_path / "other", 10)), tmp_path / "own")
    # a run folder stands for its newest good one; another run's folder is left as it is
    assert choose_checkpoint(str(tmp_path / "other"), tmp_path / "own") == step_path(tmp_path / "other", 5)
    assert step_path(tmp_path / "other", 10).is_dir()


def test_a_checkpoint_that_can_not_be_set_aside_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name it would stand for the step, which could not be saved again."""

    class ReadOnly(files.Disk):
        def rename(self, *_: Path) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

    run_with(tmp_path, 5, 10)
    monkeypatch.setattr(files, "disk", ReadOnly())
    told = r"step_00000010 must not be gone on from, but can't be renamed: .*Read-only file system; make its folder"
    with pytest.raises(CheckpointError, match=told) as caught:
        set_later_aside(step_path(tmp_path, 5))
    assert caught.value.exit_status == 1
    damage(step_path(tmp_path, 10))
    with pytest.raises(CheckpointError, match=told):
        choose_checkpoint("auto", tmp_path)


def test_a_run_with_checkpoints_of_its_own_does_not_need_the_one_it_started_from(tmp_path: Path) -> None:
    other, own = run_with(tmp_path / "other", 10), run_with(tmp_path / "own", 15)
    damage(step_path(other, 10))
    assert choose_checkpoint(str(other), own) == step_path(own, 15)
    assert choose_checkpoint(str(tmp_path / "deleted"), own) == step_path(own, 15)
    # a state kept to be looked at lies in the run folder, but not among its checkpoints
    kept = save_checkpoint(own / "inspect", 17, Snapshot({}, {"step": 17}), Keep(1))
    assert choose_checkpoint(str(kept), own) == step_path(own, 15)


@pytest.mark.parametrize("form", ["{run}", "{run}/checkpoints", "{run}/checkpoints/step_00000010"])
def test_full_checks_the_folder_of_a_named_one_too(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    other = run_with(tmp_path / "other", 5, 10)
    damage(step_path(other, 5))
    assert choose_checkpoint(form.format(run=other), tmp_path / "own", check_all=True) == step_path(other, 10)
    (record,) = caplog.records
    assert "step_00000005 can't be used: state.json has 1 bytes, not 11; going on from step_00000010" in record.message
    assert step_path(other, 5).is_dir()
