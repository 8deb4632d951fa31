"""What many tests need: a small corpus, a cache shared by the session, and configurations that train in a second."""

import atexit
import gc
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import forked

if TYPE_CHECKING:
    from smet_train.config.schema import Config

# Before any test imports the libraries that read them: no test may reach a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import what all tests need where tests run; a process that deals them out to others imports nothing."""
    if session.config.getoption("numprocesses", None):
        return
    gc.disable()  # until all tests are imported

    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are read


def pytest_collection_finish() -> None:
    """Pass over what was imported for good, or each collection would look at a million objects."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # or the libraries in C++ take what is frozen for leaks, and list it
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=["few", "all"], default="few", help="trials of each campaign in tests/faults")
    parser.addoption("--faults-out", default=None, help="JSON file for the table of tests/faults")


@pytest.fixture(autouse=True)
def prediction(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run predicts what a step takes only in a test that is marked ``predicts``: it is half of a short run's time."""
    predicts = request.node.get_closest_marker("predicts") is not None
    monkeypatch.setattr(forked, "predicts", predicts)
    if not predicts and "smet_train.job" in sys.modules:
        monkeypatch.setattr(sys.modules["smet_train.job"], "predict", lambda *_: ({}, None))


_WORDS = """
the model reads a token and writes the next one while its weights move from site to site in every layer because few of
them are active and most of the matrix does not exist so that memory is saved
""".split()


def make_documents(n_documents: int, seed: int = 0) -> list[str]:
    """Distinct documents of 10 to 60 words."""
    draw = random.Random(seed)
    return [
        f"{number} " + " ".join(draw.choice(_WORDS) for _ in range(draw.randint(10, 60)))
        for number in range(n_documents)
    ]


@pytest.fixture(scope="session")
def documents() -> Callable[..., list[str]]:
    return make_documents


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file with 400 documents, one a line."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(make_documents(400)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def quick(corpus: Path, cache_dir: Path) -> list[str]:
    """Overrides of a run of six steps on the corpus, with topology updates after steps 2 and 4."""
    return [
        "+debug=quick",
        "data=text",
        f"data.files=['{corpus}']",
        "data.text_unit=line",
        "data.shuffle_documents=50",
        f"data.cache_dir='{cache_dir}'",
        "data.validation_fraction=0.1",
    ]


@pytest.fixture(scope="session")
def quick_config(quick: list[str]) -> "Callable[..., Config]":
    """The configuration of ``quick`` with further overrides."""
    from smet_train.config.compose import compose

    return lambda *overrides: compose([*quick, *overrides])
