"""Imports of large libraries without what makes them slower for nothing."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from smet_train.importing import importing, not_installed

NEEDED_BY_NO_RUN = {"scipy", "sklearn", "lm_eval", "matplotlib", "bokeh", "datasets", "wandb", "pandas"}


def test_the_collector_rests_within_it_and_passes_over_what_was_imported() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_works_again_after_an_import_that_fails() -> None:
    try:
        with pytest.raises(ModuleNotFoundError), importing():
            importlib.import_module("no_such_library")
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_package_seems_not_to_be_installed_and_one_that_is_imported_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_package.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with not_installed("some_package", "json"):
        assert importlib.util.find_spec("some_package") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("some_package")
        assert importlib.import_module("json").loads("1") == 1
    assert importlib.import_module("some_package")
    sys.modules.pop("some_package")


@pytest.mark.process
def test_a_run_imports_nothing_that_it_does_not_need(quick: list[str], tmp_path: Path) -> None:
    """All of these are installed with the tests, and transformers imports two of them where it finds them."""
    code = (
        "import sys\nfrom smet_train.cli.train import main\n"
        "try: main()\n"
        "finally: print('imported', sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *quick, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stderr.partition("imported ")[2].strip("[]\n").replace("'", "").split(", "))
    assert {"torch", "transformers"} < imported
    assert imported.isdisjoint(NEEDED_BY_NO_RUN), imported & NEEDED_BY_NO_RUN


@pytest.mark.process
@pytest.mark.parametrize("module", ["torch.utils.flop_counter", "smet_train.analysis.planning"])
def test_what_predicts_is_not_imported_before_the_first_step(module: str) -> None:
    code = f"import sys, smet_train.job\nassert {module!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
