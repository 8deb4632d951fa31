"""Runs ``smet-train`` as a person does: in a process of its own, in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from smet_train.config.schema import Config
from smet_train.job import run_training
from tests import forked

COMMAND = [sys.executable, "-m", "smet_train"]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def programs() -> ModuleType:
    """The module that starts programs: forked, or subprocess for a test that asks for BOTH."""
    return forked


@pytest.fixture
def smet_train(
    programs: ModuleType, tmp_path: Path, environment: dict[str, str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Calls the command with arguments, in ``tmp_path``."""

    def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return programs.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )

    return call


@pytest.fixture
def smet_train_process(
    programs: ModuleType, tmp_path: Path, environment: dict[str, str]
) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts the command and does not wait."""

    def start(*arguments: str) -> "subprocess.Popen[str]":
        return programs.Popen(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_folder(quick_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps, as the commands take one."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_training(quick_config("sparsity.density=0.25", "sparsity.backend=csr"), folder)
    return folder


@pytest.fixture
def call_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Calls a console script's module with arguments, in this process: (exit status, output, errors)."""

    def call(script: ModuleType, *arguments: str | Path) -> tuple[int, str, str]:
        name = script.__name__.rpartition(".")[2]
        monkeypatch.setattr(sys, "argv", [f"smet-{name}", *map(str, arguments)])
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
