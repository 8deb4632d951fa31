"""A finished run of six steps, opened once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smet_train.config.schema import Config
from smet_train.job import run_training
from smet_train.trained import Trained, open_trained


@pytest.fixture(scope="session")
def run_folder(quick_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    run_training(quick_config("sparsity.density=0.25", "sparsity.backend=csr"), folder)
    return folder


@pytest.fixture(scope="session")
def trained(run_folder: Path) -> Trained:
    return open_trained(run_folder)
