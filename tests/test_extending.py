"""docs/extending.md: what it shows is what examples/ holds, is short, and trains through the real command line."""

import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
FILES = ["method/even.yaml", "add_method.py", "add_backend.py", "add_source.py"]
SHORT = [
    "+debug=quick", "data=text", "data.files=[corpus.txt]", "data.text_unit=line", "data.shuffle_documents=50",
    "data.validation_fraction=0.1", "data.cache_dir=cache",
]  # fmt: skip

Call = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, corpus: Path) -> Path:
    """A working directory with the corpus as text and as a table."""
    (tmp_path / "corpus.txt").write_bytes(corpus.read_bytes())
    with sqlite3.connect(tmp_path / "corpus.db") as file:
        file.execute("CREATE TABLE articles (body TEXT)")
        lines = corpus.read_text(encoding="utf-8").splitlines()
        file.executemany("INSERT INTO articles VALUES (?)", [(line,) for line in lines])
    return tmp_path


@pytest.fixture
def smet_train(here: Path) -> Call:
    def call(*words: str, status: int = 0) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "smet_train", *words]
        done = forked.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


def losses(folder: Path) -> list[float]:
    events = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [event["loss"] for event in events if event["event"] == "train"]


def plugins(*names: str) -> str:
    return f"plugins=[{','.join(str(EXAMPLES / name) for name in names)}]"


def test_the_document_shows_the_files_and_each_is_short() -> None:
    shown = re.findall(r"```(?:python|yaml)\n(.*?)```", (ROOT / "docs/extending.md").read_text("utf-8"), re.DOTALL)
    files = [(EXAMPLES / name).read_text(encoding="utf-8") for name in FILES]
    assert shown == files
    assert all(len(file.splitlines()) < 60 for file in files)


def test_a_backend_of_ones_own_trains_resumes_sweeps_and_opens(here: Path, smet_train: Call) -> None:
    own = [*SHORT, plugins("add_backend.py"), "sparsity.backend=gather"]
    smet_train(*own, "hydra.run.dir=own")
    smet_train(*SHORT, "hydra.run.dir=ours", "sparsity.backend=reference")
    assert losses(here / "own") == pytest.approx(losses(here / "ours"), abs=1e-4)
    said = smet_train("resume", "own", "train.steps=8", status=2)
    assert "which is Python code; if it is yours, repeat it behind the folder" in said
    smet_train("resume", "own", "train.steps=8", plugins("add_backend.py"))
    assert len(losses(here / "own")) == 8
    smet_train("-m", *own, "seed=1,2", "hydra.sweep.dir=sweep")
    assert len(list((here / "sweep").glob("*/metrics.jsonl"))) == 2
    code = (
        "from pathlib import Path; from smet_train.trained import open_trained; import sys\n"
        "layers = [m for m in open_trained(Path('own')).model.modules() if hasattr(m, 'backend')]\n"
        "print({layer.backend.name for layer in layers})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = forked.run(
        [sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "{'densify'}"
    assert "densify computes it" in told.stderr
    said = smet_train(*own, "sparsity.block_size=16", "hydra.run.dir=blocks", status=2)
    assert "write sparsity.block_size=1" in said


def test_a_plugin_that_has_moved_is_given_anew_and_a_model_opens_without_it(here: Path, smet_train: Call) -> None:
    moving = here / "mine.py"
    moving.write_bytes((EXAMPLES / "add_backend.py").read_bytes())
    smet_train(*SHORT, "plugins=[mine.py]", "sparsity.backend=gather", "hydra.run.dir=run")
    moving.rename(here / "moved.py")
    said = smet_train("resume", "run", "train.steps=8", status=2)
    assert "mine.py']" in said or "mine.py]" in said
    smet_train("resume", "run", "train.steps=8", "plugins=[moved.py]")
    assert json.loads((here / "run/resumes.jsonl").read_text())["changed"]["plugins"][1] == [str(here / "moved.py")]
    (here / "moved.py").unlink()
    code = "from pathlib import Path; from smet_train.trained import open_trained; open_trained(Path('run'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = forked.run(
        [sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=True
    )
    assert "densify computes it" in told.stderr


def test_a_method_of_ones_own_trains_and_goes_on_exactly(here: Path, smet_train: Call) -> None:
    own = [
        "--config-dir", str(EXAMPLES), *SHORT, "method=even", plugins("add_method.py"), "sparsity.backend=reference"
    ]  # fmt: skip
    smet_train(*own, "hydra.run.dir=whole", "train.steps=12")
    smet_train(*own, "hydra.run.dir=again", "train.steps=12", "train.max_hours=1e-9")
    smet_train("resume", "again", "train.max_hours=null", plugins("add_method.py"))
    assert losses(here / "whole") == losses(here / "again")
    assert len(losses(here / "again")) == 12
    text = (here / "whole/metrics.jsonl").read_text(encoding="utf-8")
    moves = [event for event in map(json.loads, text.splitlines()) if event["event"] == "topology"]
    assert moves
    assert all(event["grown"] == event["dropped"] > 0 for event in moves)


def test_a_source_of_ones_own_gives_the_same_tokens(here: Path, smet_train: Call) -> None:
    table = [plugins("add_source.py"), "data.source=sqlite", "data.name=articles", "data.text_field=body"]
    others = [word for word in SHORT if not word.startswith(("data=", "data.files", "data.text_unit"))]
    smet_train(*others, *table, "data.files=[corpus.db]", "hydra.run.dir=table")
    smet_train(*SHORT, "hydra.run.dir=text")
    assert losses(here / "table") == losses(here / "text")
    smet_train("resume", "table", "train.steps=8", plugins("add_source.py"))
    assert len(losses(here / "table")) == 8
    evaluate = [sys.executable, "-m", "smet_train.cli.eval", "table"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = forked.run(evaluate, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "data.source=sqlite is unknown here" in done.stderr
    evaluate += ["--plugins", str(EXAMPLES / "add_source.py")]
    done = forked.run(evaluate, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = smet_train(*others, *table, "data.files=[corpus.txt]", "hydra.run.dir=wrong", status=2)
    assert f"data.files=['{here / 'corpus.txt'}'] data.name=articles: file is not a database" in said
    said = smet_train(*others, *table, "hydra.run.dir=wrong", status=2)
    assert "needs data.files=[FILE.db]" in said


def test_the_even_rules_do_what_they_say() -> None:
    code = (
        "import sys; sys.path.insert(0, 'examples'); import torch, add_method\n"
        "from torch import nn; from smet_train.sparse import sparsify\n"
        "from smet_train.topology import MoveRules, Question\n"
        "layer = sparsify(nn.Sequential(nn.Linear(40, 30)), ['0'], density=0.1)['0']\n"
        "asked = Question('0', layer, 1, 1, MoveRules())\n"
        "held = torch.bincount(layer.index.long() % 40, minlength=40)\n"
        "grown = add_method.emptiest_columns(asked, 50) % 40\n"
        "fuller = held > held[grown].max()\n"
        "assert fuller.any() and not fuller[grown].any()\n"
        "scores = add_method.row_magnitude(asked)\n"
        "rows = layer.index.long() // 40\n"
        "for row in rows.unique(): torch.testing.assert_close(scores[rows == row].mean(), torch.tensor(1.0))\n"
    )
    forked.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
