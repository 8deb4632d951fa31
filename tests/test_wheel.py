"""The wheel holds everything: it works from any folder, without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel's content has been put, as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_every_yaml_file_and_the_launcher_are_in_the_wheel(installed: Path) -> None:
    shipped = {path.relative_to(installed / "smet_train" / "_configs") for path in installed.rglob("*.yaml")}
    assert shipped == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert (installed / "hydra_plugins" / "smet_launcher" / "child_process.py").is_file()
    assert (installed / "hydra_plugins" / "smet_sweeper" / "optuna_sweeper.py").is_file()
    assert any("LICENSE" in path.name for path in installed.glob("*.dist-info/**/*"))


def test_a_run_and_a_sweep_from_another_folder(installed: Path, tmp_path: Path, quick: list[str]) -> None:
    # A path that comes before the editable install's, so that the copy in the wheel is what runs.
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def call(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "from smet_train.config.locate import config_folder; print(config_folder())"
    assert call("-c", where).strip() == str(installed / "smet_train" / "_configs")
    call("-m", "smet_train", "-m", *quick, "train.steps=1", "seed=1,2")
    (sweep,) = (tmp_path / "multirun").iterdir()
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["seed=1", "seed=2"]
