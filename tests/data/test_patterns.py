"""Globs mean the same files from every folder, whatever the folder is called."""

import os
from pathlib import Path

import pytest

from smet_train.config.paths import absolute
from smet_train.data.files import expand
from smet_train.data.patterns import absolute_pattern

NAMES = ("runs[1]", "a*b", "what?", "[!x]", "plain")


def corpus(folder: Path, *names: str) -> list[str]:
    (folder / "corpus").mkdir(parents=True)
    for name in names:
        (folder / "corpus" / name).write_text("text")
    return sorted(str(folder / "corpus" / name) for name in names)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["corpus/*.txt", "./corpus/[ab].txt", "../*/corpus/?.txt", "**/*.txt"])
def test_a_glob_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pattern: str) -> None:
    expected = corpus(tmp_path / "here" / name, "a.txt", "b.txt")
    corpus(tmp_path / "runs1", "z.txt")  # which "runs[1]" would match as a glob
    corpus(tmp_path / "aXb", "z.txt")
    monkeypatch.chdir(tmp_path / "here" / name)
    assert expand([pattern]) == expected
    kept = absolute("data.files", [pattern])
    monkeypatch.chdir("/")
    assert expand(kept) == expected
    assert absolute("data.files", kept) == kept


@pytest.mark.parametrize("name", NAMES)
def test_a_glob_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = corpus(tmp_path / name, "a.txt", "b.txt")
    monkeypatch.setenv("HOME", str(tmp_path / name))
    assert expand(["~/corpus/*.txt"]) == expected
    assert expand(["~/corpus/b.txt"]) == expected[1:]


def test_a_file_of_that_very_name_is_meant_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs[1]"
    one, other = corpus(folder, "a1.txt", "a[1].txt")
    monkeypatch.chdir(folder)
    assert expand(["corpus/a[1].txt"]) == expand(absolute("data.files", ["corpus/a[1].txt"])) == [other]
    assert expand(["corpus/a[12].txt"]) == [one]
    assert absolute_pattern("corpus") == os.path.join(folder, "corpus")
