"""A GPU that is asked for where no driver is."""

import ctypes
import sys
from pathlib import Path

import pytest

from smet_train import gpu_driver
from smet_train.errors import ConfigError
from smet_train.gpu_driver import require_gpu_driver


def missing(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Linux with neither NVIDIA's library nor AMD's device, whose path is returned."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(gpu_driver, "_AMD", tmp_path / "kfd")
    return tmp_path / "kfd"


@pytest.mark.usefixtures("bare_machine")
def test_without_a_driver_a_gpu_is_refused() -> None:
    require_gpu_driver("cpu")
    require_gpu_driver("auto")
    with pytest.raises(
        ConfigError, match=r"train\.device=cuda: there is no driver .*; write train\.device=cpu or auto"
    ):
        require_gpu_driver("cuda")


def test_with_a_driver_of_either_kind_or_where_it_can_not_be_told_torch_decides(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_machine.touch()
    require_gpu_driver("cuda")
    bare_machine.unlink()
    monkeypatch.setattr(sys, "platform", "win32")
    require_gpu_driver("cuda")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)
    require_gpu_driver("cuda")
