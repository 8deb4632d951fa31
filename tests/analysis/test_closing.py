"""The last lines of a run name what exists and what can be typed."""

import shlex
from pathlib import Path

import pytest

from smet_train.analysis.closing import next_lines, stopped_lines, typed, where_lines


def test_a_folder_is_named_as_it_is_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(tmp_path / "outputs" / "demo") == "outputs/demo"
    assert typed(tmp_path / "my runs" / "a") == "'my runs/a'"
    assert typed(tmp_path.parent) == str(tmp_path.parent)


def test_where_everything_is(tmp_path: Path) -> None:
    assert where_lines(tmp_path)[0] == f"run folder  {tmp_path}"
    assert not any("checkpoint" in line for line in where_lines(tmp_path))
    (tmp_path / "checkpoints" / "step_00000003").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000012").mkdir()
    assert "checkpoint  checkpoints/step_00000012" in where_lines(tmp_path)


def test_the_next_commands_name_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    commands = [shlex.split(line) for line in next_lines(folder, 60)[1:]]
    assert [words[0] for words in commands] == [
        "smet-report", "smet-eval", "smet-generate", "smet-export", "smet-train",
    ]  # fmt: skip
    assert all(str(folder) in words for words in commands)
    assert "train.steps=120" in commands[-1]


def test_a_stopped_run_tells_how_to_go_on(tmp_path: Path) -> None:
    first, second = stopped_lines(tmp_path, "SIGTERM", 1_000, 5_000)
    assert first.startswith("SIGTERM: stopped at step 1,000 of 5,000 with a checkpoint")
    assert shlex.split(second) == ["smet-train", "resume", str(tmp_path)]
