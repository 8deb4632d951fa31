"""Files that change between a save and a resume: found before the first step, and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from smet_train.config.schema import Config
from smet_train.errors import DataError
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events
from tests.conftest import make_documents

QuickConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def begun(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of three files and a run that has saved its third step of six."""
    here = tmp_path_factory.mktemp("begun")
    (here / "corpus").mkdir()
    for number in range(3):
        text = "\n".join(make_documents(100, seed=number))
        (here / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
    assert run_training(configured(quick_config, here), here / "run", Console(quiet=True)) == 0
    shutil.rmtree(here / "run" / "checkpoints" / "step_00000006")
    return here


def configured(quick_config: QuickConfig, here: Path, *overrides: str) -> Config:
    return quick_config("model.layers=1", f"data.files=['{here}/corpus/*.txt']", *overrides)


def edit(corpus: Path, draw: Random) -> str:
    """Other letters in a middle, the size as before."""
    file = corpus / f"{draw.randrange(3)}.txt"
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content) // 4, len(content) // 2)
    content[place : place + 3] = b"zzz" if content[place : place + 3] != b"zzz" else b"yyy"
    file.write_bytes(content)
    return f"{file.name} has changed"


def append(corpus: Path, draw: Random) -> str:
    file = corpus / f"{draw.randrange(3)}.txt"
    with file.open("a") as end:
        end.write("\none more")
    return f"{file.name} has changed"


def truncate(corpus: Path, draw: Random) -> str:
    file = corpus / f"{draw.randrange(3)}.txt"
    file.write_bytes(file.read_bytes()[: draw.randint(1, 2000)])
    return f"{file.name} has changed"


def rename(corpus: Path, draw: Random) -> str:
    file = corpus / f"{draw.randrange(3)}.txt"
    file.rename(corpus / "other.txt")
    return f"{file.name} is missing; other.txt is new"


def remove(corpus: Path, draw: Random) -> str:
    file = corpus / f"{draw.randrange(3)}.txt"
    file.unlink()
    return f"{file.name} is missing"


def add(corpus: Path, draw: Random) -> str:
    (corpus / "3.txt").write_text(f"a new document {draw.random()}")
    return "3.txt is new"


def reshard(corpus: Path, draw: Random) -> str:  # noqa: ARG001
    text = "\n".join((corpus / f"{number}.txt").read_text() for number in range(3))
    lines = text.splitlines()
    for number, part in enumerate((lines[:50], lines[50:])):
        (corpus / f"{number}.txt").write_text("\n".join(part))
    (corpus / "2.txt").unlink()
    return "2.txt is missing; 0.txt has changed; 1.txt has changed"


def swap(corpus: Path, draw: Random) -> str:  # noqa: ARG001
    (corpus / "0.txt").rename(corpus / "x")
    (corpus / "1.txt").rename(corpus / "0.txt")
    (corpus / "x").rename(corpus / "1.txt")
    return "0.txt has changed; 1.txt has changed"


CHANGES = (edit, append, truncate, rename, remove, add, reshard, swap)


def copied(begun: Path, tmp_path: Path) -> Path:
    here = tmp_path / "here"
    shutil.copytree(begun, here)
    return here


def test_changed_files_are_found_and_named(
    quick_config: QuickConfig, begun: Path, tmp_path: Path, campaign: Any
) -> None:
    with campaign("changed sources: found before the first step, the file named") as tally:
        for draw in tally.draws(few=8, every=32):
            here = copied(begun, tmp_path)
            told = CHANGES[tally.tried % len(CHANGES)](here / "corpus", draw)
            before = (here / "run" / "metrics.jsonl").read_bytes()
            try:
                run_training(configured(quick_config, here), here / "run", Console(quiet=True))
                tally.note(f"{told}: it goes on")
            except DataError as error:
                same = (here / "run" / "metrics.jsonl").read_bytes() == before
                tally.note(None if told in str(error) and same else f"{told}: {error}")
            shutil.rmtree(here)


def test_moved_files_are_the_same(quick_config: QuickConfig, begun: Path, tmp_path: Path) -> None:
    here = copied(begun, tmp_path)
    assert run_training(configured(quick_config, here), here / "run", Console(quiet=True)) == 0
    assert read_events(here / "run" / "metrics.jsonl")[-1]["reason"] == "finished"


def test_other_files_in_another_order_are_found(quick_config: QuickConfig, begun: Path, tmp_path: Path) -> None:
    here = copied(begun, tmp_path)
    names = ",".join(f"'{here}/corpus/{number}.txt'" for number in (1, 0, 2))
    with pytest.raises(DataError, match=r"1\.txt comes in another place"):
        run_training(configured(quick_config, here, f"data.files=[{names}]"), here / "run", Console(quiet=True))


def test_a_changed_source_may_be_allowed(
    quick_config: QuickConfig, begun: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = copied(begun, tmp_path)
    append(here / "corpus", Random(1))
    allowed = configured(quick_config, here, "data.allow_changed_source=true")
    assert run_training(allowed, here / "run", Console(quiet=True)) == 0
    assert "going on although the data have changed" in caplog.text
    # the run is of the new files from now on
    assert run_training(configured(quick_config, here, "train.steps=8"), here / "run", Console(quiet=True)) == 0


def test_too_many_bad_lines_end_a_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    lines = [line if number % 3 else "{" for number, line in enumerate(jsonl())]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    config = ["data=jsonl", f"data.files=['{tmp_path}/x.jsonl']", "data.text_unit=paragraph", "data.on_bad=skip"]
    with pytest.raises(DataError, match=r"\d+ of \d+ documents are bad, more than data.max_bad_fraction=0.01"):
        run_training(quick_config(*config), tmp_path / "run", Console(quiet=True))
    assert run_training(quick_config(*config, "data.max_bad_fraction=0.5"), tmp_path / "run", Console(quiet=True)) == 0


def jsonl() -> list[str]:
    return [json.dumps({"text": text}) for text in make_documents(300)]


def test_a_damaged_cache_of_checksums_is_made_again(
    quick_config: QuickConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    for content in ("{", "[]"):
        (tmp_path / "cache" / "checksums.json").write_text(content)
        config = quick_config(f"data.cache_dir='{tmp_path}/cache'", "train.steps=1")
        assert run_training(config, tmp_path / f"run {content}", Console(quiet=True)) == 0
        assert "the cache of checksums is damaged" in caplog.text
        caplog.clear()
