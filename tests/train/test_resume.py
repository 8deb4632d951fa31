import json
from pathlib import Path

import pytest

from smet_train.errors import CheckpointError
from smet_train.train.checkpoint import Snapshot, checkpoint_steps, save_checkpoint
from smet_train.train.resume import choose_checkpoint, is_finished


def run_with(folder: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(folder / "checkpoints", step, Snapshot({}, {"step": step}), keep=10)
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
    assert checkpoint_steps(tmp_path / "checkpoints") == [5]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000005", "superseded_00000010", "superseded_00000015"]


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

    end = json.dumps({"event": "end", "reason": "finished"})
    assert not is_finished(tmp_path, None, 10)
    assert not is_finished(tmp_path, path, 10)  # no metrics
    assert ended("{}", end)
    assert not is_finished(tmp_path, path, 11)
    assert not ended(json.dumps({"event": "end", "reason": "SIGTERM"}))
    assert not ended(end, '{"event": "ev')
    assert not ended()
