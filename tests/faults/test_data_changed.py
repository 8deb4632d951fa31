"""Sources that change between two starts of a run: found before the first step, the file named."""

import copy
import gzip
import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from smet_train.config.schema import Config
from smet_train.data.python_source import find_python_files
from tests.faults.test_kills import write_source
from tests.faults.trials import output, run, trace

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
STEPS = 4


class OwnLibrary:
    """Reads ``root`` as if it were the standard library."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self) -> None:
        from smet_train.data import sources

        vars(sources)["find_python_files"] = partial(find_python_files, self.root)


def edit(files: list[Path]) -> str:
    content = bytearray(files[1].read_bytes())
    content[len(content) // 2] ^= 1
    times = files[1].stat()
    files[1].write_bytes(content)
    os.utime(files[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # as careless copies do
    return files[1].name


def truncate(files: list[Path]) -> str:
    files[2].write_bytes(files[2].read_bytes()[:-9])
    return files[2].name


def append(files: list[Path]) -> str:
    with files[0].open("ab") as file:
        file.write(files[0].read_bytes()[:200])
    return files[0].name


def delete(files: list[Path]) -> str:
    files[0].unlink()
    return files[0].name


def add(files: list[Path]) -> str:
    new = files[0].with_name("9" + files[0].name)
    shutil.copy(files[0], new)
    return new.name


def rename(files: list[Path]) -> str:
    files[1].rename(files[1].with_name("8" + files[1].name))
    return f"{files[1].name} is now called 8{files[1].name}"


def swap(files: list[Path]) -> str:
    spare = files[0].with_name("spare")
    files[0].rename(spare)
    files[1].rename(files[0])
    spare.rename(files[1])
    return files[0].name


def empty(files: list[Path]) -> str:
    files[1].write_bytes(b"")
    return files[1].name


def shard_anew(files: list[Path]) -> str:
    """The same documents in other files."""
    if files[0].suffix == ".parquet":
        pq.write_table(pq.read_table(files[0]), files[0], row_group_size=7)
    elif files[0].suffix == ".gz":
        files[0].write_bytes(gzip.compress(gzip.decompress(files[0].read_bytes()), 1))
    else:
        files[0].write_bytes(files[0].read_bytes() + b"\n" + files[1].read_bytes())
        files[1].unlink()
    return files[0].name


CHANGES = [edit, truncate, append, delete, add, rename, swap, empty, shard_anew]
KINDS = ("text", "jsonl.gz", "parquet", "python_source")
CASES = [(kind, change) for change in CHANGES for kind in KINDS if (kind, change) != ("python_source", shard_anew)]


class Subject:
    """A run of some steps over a corpus of its own, to be started again over a changed one."""

    def __init__(self, kind: str, quick_config: QuickConfig, folder: Path) -> None:
        self.corpus, self.folder = folder / "corpus", folder
        self.corpus.mkdir(parents=True)
        self.hooks = [OwnLibrary(self.corpus)] if kind == "python_source" else []
        if kind == "python_source":
            write_source("text", self.corpus)
            for path in self.corpus.iterdir():
                path.rename(path.with_suffix(".py"))
        settings = ["model.layers=1", "model.intermediate_size=64", f"data.cache_dir='{folder / 'cache'}'"]
        self.config = quick_config(*settings, f"train.steps={STEPS}", *write_source_of(kind, self.corpus))
        assert run(self.config, folder / "run", *self.hooks) == 0, output(folder / "run")
        self.config.train.steps = 2 * STEPS
        self.asked = copy.deepcopy(self.config)
        shutil.copytree(self.corpus, folder / "kept")
        shutil.copytree(folder / "run", folder / "kept run")

    def start_again(self) -> int:
        return run(self.config, self.folder / "run", *self.hooks)

    def last_step(self) -> int:
        return max(event["step"] for event in trace(self.folder / "run") if event["event"] == "train")

    def restore(self) -> None:
        self.config = copy.deepcopy(self.asked)
        for name, kept in (("corpus", "kept"), ("run", "kept run")):
            shutil.rmtree(self.folder / name)
            shutil.copytree(self.folder / kept, self.folder / name)


def write_source_of(kind: str, corpus: Path) -> list[str]:
    return ["data=python_source", "data.files=[]", "data.text_unit=paragraph"] if kind == "python_source" else (
        write_source(kind, corpus)
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The subject of a kind, as it was when it had been trained."""
    folder = tmp_path_factory.mktemp("subjects")

    @cache
    def make(kind: str) -> Subject:
        return Subject(kind, quick_config, folder / kind)

    def restored(kind: str) -> Subject:
        make(kind).restore()
        return make(kind)

    return restored


def test_changed_sources(campaign: Any, subject: Callable[[str], Subject]) -> None:
    with campaign("changed sources: found before step 1, the file named") as tally:
        for kind, change in tally.some(CASES, few=4):
            tried = subject(kind)
            (tried.folder / "run" / "console.log").unlink()
            name = change(sorted(tried.corpus.iterdir()))
            status, told = tried.start_again(), output(tried.folder / "run")
            wrong = None
            if status != 2 or tried.last_step() != STEPS:
                wrong = f"exit status {status} at step {tried.last_step()}: {told}"
            elif name not in told.splitlines()[-1] or "Traceback" in told:
                wrong = f"{name} is not named: {told}"
            tally.note(wrong and f"{kind}, {change.__name__}: {wrong}")


@pytest.mark.parametrize("change", [append, delete, add, rename])
def test_a_changed_source_is_gone_on_with_if_that_is_asked_for(
    subject: Callable[[str], Subject], change: Callable[[list[Path]], str]
) -> None:
    tried = subject("text")
    name = change(sorted(tried.corpus.iterdir()))
    tried.config.data.allow_changed_source = True
    assert tried.start_again() == 0, output(tried.folder / "run")
    assert tried.last_step() == 2 * STEPS
    assert name in output(tried.folder / "run")


def test_a_source_that_was_only_touched_has_not_changed(subject: Callable[[str], Subject]) -> None:
    tried = subject("text")
    for path in tried.corpus.iterdir():
        path.write_bytes(path.read_bytes())
    assert tried.start_again() == 0, output(tried.folder / "run")
    assert tried.last_step() == 2 * STEPS
