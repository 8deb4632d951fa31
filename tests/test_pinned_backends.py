"""A run goes on with the backends that ``sparsity.backend=auto`` chose when it began, whatever is fastest today."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smet_train.config.schema import Config
from smet_train.job import run_training
from smet_train.sparse.backends import BACKENDS, auto
from smet_train.sparse.backends.auto import choose_backend
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import loop
from smet_train.train.run import Run

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
Trainer = Callable[..., set[str]]


class Crash(Exception):
    """Stands for whatever ends a process."""


class KeptByAll(dict[str, str]):
    """A checkpoint's backends that are the same for whatever layer."""

    def get(self, *_: Any) -> Any:
        return "quantum"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, quick_config: QuickConfig, tmp_path: Path) -> Trainer:
    """Trains in a process and with a cache of its own, where one backend is the fastest; the backends that computed."""

    def train_with(fastest: str, folder: Path, *overrides: str, die_after: int | None = None) -> set[str]:
        choose_backend.cache_clear()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        seen: set[str] = set()

        def note(run: Run, *facts: Any) -> None:
            report_step(run, *facts)
            seen.update(layer.backend.name for layer in sparse_layers(run.model).values())
            if run.state.step == die_after:
                raise Crash

        report_step = loop.report_step
        with monkeypatch.context() as patch:
            patch.setattr(auto, "_time", lambda runs: {name: 1.0 + (name != fastest) for name in runs})
            patch.setattr(loop, "report_step", note)
            config = quick_config(
                "sparsity.backend=auto", f"data.cache_dir='{tmp_path}/cache'", "checkpoint.interval=2", *overrides
            )
            try:
                run_training(config, folder)
            except Crash:
                assert die_after is not None
        return seen

    return train_with


def tensors(folder: Path) -> list[bytes]:
    files = sorted((folder / "checkpoints" / "step_00000006").glob("*.safetensors"))
    assert len(files) == 4
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize("overrides", [[], ["method=gmp"]], ids=["smet", "gmp"])
def test_a_resumed_run_keeps_its_backends_and_its_bits(train: Trainer, tmp_path: Path, overrides: list[str]) -> None:
    whole, broken, other = tmp_path / "whole", tmp_path / "broken", tmp_path / "other"
    assert train("csr", whole, *overrides) == {"csr"}
    assert train("csr", broken, *overrides, die_after=3) == {"csr"}
    assert train("densify", broken, *overrides) == {"csr"}
    assert tensors(broken) == tensors(whole)
    assert train("densify", other, *overrides) == {"densify"}
    assert tensors(other) != tensors(whole)


def test_it_says_what_it_keeps(train: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("csr", tmp_path / "run", die_after=3)
    assert "csr (csr 1 ms, densify 2 ms" in capsys.readouterr().out
    train("densify", tmp_path / "run")
    assert "csr (as in the checkpoint)" in capsys.readouterr().out


@pytest.mark.parametrize("reason", ["it is Sunday", None])
def test_a_backend_that_can_no_longer_compute_is_chosen_anew_with_a_warning(
    train: Trainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str | None,
) -> None:
    train("csr", tmp_path / "run", die_after=3)
    if reason is None:  # as if written by a later version
        monkeypatch.setattr("smet_train.job.chosen_backends", lambda *_: KeptByAll(any=""))
        expected = "by the backend quantum, which can't do so on cpu: it is unknown here"
    else:
        monkeypatch.setattr(BACKENDS["csr"], "unsupported", lambda *_: reason)
        expected = "by the backend csr, which can't do so on cpu: it is Sunday; another one is chosen"
    with caplog.at_level(logging.WARNING):
        assert train("densify", tmp_path / "run") == {"densify"}
    assert expected in caplog.text


def test_a_backend_that_was_named_is_no_choice(train: Trainer, tmp_path: Path) -> None:
    first = tmp_path / "first"
    train("csr", first, "sparsity.backend=reference", die_after=3)
    start = f"checkpoint.resume={first}/checkpoints/step_00000002"
    assert train("csr", tmp_path / "second", start) == {"csr"}
    assert train("csr", tmp_path / "third", start, "sparsity.backend=densify") == {"densify"}
