"""What is made, and taken away again, around a run."""

import os
from pathlib import Path

import pytest

from hydra_plugins.smet_launcher._job import JobProcess
from smet_train.config.launch import launch, resume
from smet_train.config.new_folder import NewFolder, check_writable
from smet_train.config.plain import save_config
from smet_train.config.schema import Config
from smet_train.errors import ConfigError, DataError
from smet_train.train.lock import run_folder_lock


def fail_before_anything(_: Config, folder: Path) -> int:
    with run_folder_lock(folder):
        raise DataError("other data than you think")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_mistake_that_shows_later_leaves_no_folder_either(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        launch(fail_before_anything, [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "outputs").mkdir()
    with pytest.raises(DataError):
        launch(fail_before_anything, ["hydra.run.dir=outputs/a/b"])
    assert list(tmp_path.rglob("*")) == [tmp_path / "outputs"]


def test_a_run_that_torchrun_restarts_must_not_begin_afresh_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = ["checkpoint.resume=never"]
    assert launch(lambda *_: 0, fresh) == 0
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert launch(lambda *_: 0, []) == 0
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"let torchrun's --max-restarts=3 begin at step 0 each time; leave one"):
        launch(lambda *_: 0, fresh)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_of_the_surroundings_keeps_its_log(tmp_path: Path) -> None:
    def fail(*_: object) -> int:
        raise DataError("no network", exit_status=1)

    with pytest.raises(DataError):
        launch(fail, ["hydra.run.dir=here"])
    assert "no network" in (tmp_path / "here" / "train.log").read_text()

    def crash(*_: object) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch(crash, ["hydra.run.dir=there"])
    assert "Traceback" in (tmp_path / "there" / "train.log").read_text()


def test_a_folder_that_was_there_or_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError):
        launch(fail_before_anything, ["hydra.run.dir=there"])
    assert (tmp_path / "there" / "train.log").is_file()
    new = NewFolder(tmp_path / "used")
    with run_folder_lock(tmp_path / "used"):
        new.remove_if_unused()
        assert (tmp_path / "used" / ".lock").is_file()
    NewFolder(None).remove_if_unused()


def test_a_read_only_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=rf"the folder {tmp_path}/run can't be written: {tmp_path} is read-only here"):
        check_writable(tmp_path / "run")


def test_more_files_than_are_looked_at_are_left_to_the_run(tmp_path: Path) -> None:
    for number in range(101):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(DataError, match="other data"):
        launch(fail_before_anything, ["data=text", "data.files=['*.txt']"])


def test_options_go_where_they_like(tmp_path: Path) -> None:
    seen: list[int] = []

    def note(config: Config, _: Path) -> int:
        seen.append(config.seed + config.train.steps)
        return 0

    (tmp_path / "mine").mkdir()
    assert launch(note, ["seed=3", "--config-dir", "mine", "train.steps=9"]) == 0
    assert seen == [12]


def test_resume_trains_in_the_folder_that_it_is_given(tmp_path: Path) -> None:
    assert launch(save_it, ["hydra.run.dir=outputs/one", "seed=5"]) == 0
    seen: list[tuple[int, int, Path]] = []

    def note(config: Config, folder: Path) -> int:
        seen.append((config.seed, config.train.steps, folder))
        return 0

    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    assert resume(note, ["../outputs/one", "train.steps=9"]) == 0
    (run,) = seen
    assert run[:2] == (5, 9)
    assert run[2].samefile(tmp_path / "outputs" / "one")
    assert os.listdir() == []


def save_it(config: Config, folder: Path) -> int:
    save_config(config, folder / "config.yaml")
    return 0


def test_a_yaml_file_may_ask_for_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    (tmp_path / "experiment" / "both.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def run(process: JobProcess) -> None:
        ran.append(process._job.name)
        process._job.status = "done"

    def train(_config: Config, _folder: Path) -> int:
        raise AssertionError("a sweep trains in processes of its own")

    monkeypatch.setattr(JobProcess, "run", run)
    assert launch(train, ["--config-dir", str(tmp_path), "+experiment=both"]) == 0
    assert ran == ["seed=1", "seed=2"]
