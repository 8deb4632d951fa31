"""What the README and the documents name exists, and what they tell to type is understood."""

import argparse
import importlib
import re
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from smet_train.bench.settings import LossBench, LrRuleBench, MemoryBench, SpeedBench, SpikeBench
from smet_train.config.compose import compose, compose_own
from smet_train.config.fields import leaves
from smet_train.config.plan_settings import PlanSettings
from smet_train.config.schema import Config
from tests.documents import DOCUMENTS, ROOT, Command, anchors, commands, name_of, spans

BENCHMARKS: dict[str, Any] = {
    "spike": SpikeBench, "loss": LossBench, "lr_rule": LrRuleBench, "speed": SpeedBench, "memory": MemoryBench,
}  # fmt: skip
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
COMPOSED = ("smet-train", "smet-plan", "smet-bench")
OTHER_PROGRAMS = {"pip", "source", "cd", "export", "kill", "sleep", "ls", "cat", "tail", "head", "wc", "true"}
OTHER_PROGRAMS |= {"wandb", "tensorboard"}
NAMED_ROOTS = ("smet_train/", "tests/", "configs/", "docs/", "benchmarks/", "hydra_plugins/", "scripts/")
# A run's own settings, what an exported model comes with, and the best trial of a search.
RUN_FILES = {"config.yaml", "README.md", "optimization_results.yaml"}


@pytest.fixture(params=DOCUMENTS, ids=name_of)
def document(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A document and its text."""
    return request.param, request.param.read_text(encoding="utf-8")


def test_every_link_leads_to_a_file_and_a_heading(document: tuple[Path, str]) -> None:
    path, text = document
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{link} leads nowhere"
        assert file.is_relative_to(ROOT), f"{link} leaves the repository"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{link}: no such heading"


def test_every_named_file_exists(document: tuple[Path, str]) -> None:
    _, text = document
    files = [
        str(file.relative_to(ROOT))
        for folder in ("smet_train", "tests", "configs", "benchmarks", "docs", "hydra_plugins", "scripts")
        for file in (ROOT / folder).rglob("*")
    ]
    for span in spans(text):
        named = span.startswith(NAMED_ROOTS) or re.fullmatch(r"[\w./]+\.(?:py|md|toml|yaml)", span)
        if not named or Path(span).name in RUN_FILES or "…" in span or not re.fullmatch(r"[\w./-]+", span):
            continue
        exists = (ROOT / span).exists() or any(f"/{file}".endswith(f"/{span}") for file in files)
        assert exists, f"{span} does not exist"


def test_every_named_setting_exists(document: tuple[Path, str]) -> None:
    _, text = document
    keys = {leaf.key for leaf in leaves(Config())} | {leaf.key for leaf in leaves(PlanSettings(), "plan.")}
    keys |= {leaf.key for settings in BENCHMARKS.values() for leaf in leaves(settings(), "bench.")}
    sections = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key}))
    for span in spans(text):
        match = re.match(rf"((?:{sections})\.[\w.]+)(?:=|$)", span)
        if match and not match[1].endswith((".py", ".yaml", ".log", ".safetensors", ".json", ".pt")):
            assert match[1].rstrip(".") in keys or any(key.startswith(f"{match[1]}.") for key in keys), span


def test_the_documents_name_commands() -> None:
    assert len({command.line for command in commands() if command.whole}) >= 30


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.document}: {command.line}"[:100])
def test_every_command_is_understood(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    program = command.line.split()[0]
    if program == "make":
        targets = [word for word in command.words[1:] if "=" not in word and word != "…"]
        assert set(targets) <= TARGETS
    elif program == "sbatch":
        check_sbatch(command.words[1:])
    elif program == "python":
        check_python(command.words[1:])
    elif program == "torchrun":
        module = command.words.index("-m")
        assert command.words[module + 1] == "smet_train"
        check_composes("smet-train", command.words[module + 2 :])
    elif program.startswith("smet-"):
        assert program in SCRIPTS, f"{program} is no command"
        if command.whole and program in COMPOSED:
            check_composes(program, command.words[1:])
        elif command.whole:
            check_parses(program, command.words[1:], monkeypatch)
    else:
        assert program in OTHER_PROGRAMS or "=" in program, f"{program}: say in this test what it is"


def check_python(words: list[str]) -> None:
    """A module that is found, or a file that is there; -c has its code in the tutorial's own test."""
    if words[0] == "-m":
        assert find_spec(words[1]) is not None, words[1]
    elif words[0] != "-c":
        assert (ROOT / words[0]).is_file(), words[0]


def check_sbatch(words: list[str]) -> None:
    """A script that is there, and what it has ``smet-train`` compose."""
    script = ROOT / words[0]
    (line,) = re.findall(r"^(?:exec|srun) smet-train(.*)\"\$@\"", script.read_text(encoding="utf-8"), re.MULTILINE)
    check_composes("smet-train", [*line.split(), *words[1:]])


def check_composes(program: str, words: list[str]) -> None:
    """All that ``program`` would compose, value by value where it sweeps; options of Hydra are left out."""
    prefix = ""
    settings: Any = Config()
    if program == "smet-bench" and words and words[0] in BENCHMARKS:
        prefix, settings = "bench.", BENCHMARKS[words.pop(0)]()
    elif program == "smet-bench":
        assert set(words) <= {"-h", "--help"}, words[0]
    elif program == "smet-plan":
        prefix, settings = "plan.", PlanSettings()
    elif words[:1] == ["resume"]:
        words = words[2:]
    sweeps = "-m" in words
    overrides = [word for word in words if not word.startswith("-") and word != "job"]
    own = [word for word in overrides if prefix and word.startswith(prefix)]
    if prefix:
        compose_own(prefix, own, settings)
    for combination in swept([word for word in overrides if word not in own]) if sweeps else [overrides]:
        compose([word for word in combination if word not in own])


def swept(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides with each value of each swept key, the other ones at their first; an interval has no values."""
    overrides = [override for override in overrides if "interval(" not in override]
    values = [[override] for override in overrides]
    for place, override in enumerate(overrides):
        key, _, value = override.partition("=")
        if "[" not in value:
            values[place] = [f"{key}={one}" for one in value.split(",")]
    first = [options[0] for options in values]
    for place, options in enumerate(values):
        for option in options:
            yield [*first[:place], option, *first[place + 1 :]]


class Parsed(Exception):
    """A command line was understood."""


def check_parses(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own parser takes the words; nothing after it is done."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **more: Any) -> None:
        parse(self, *args, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr("sys.argv", [program, *words])
    module, _, function = SCRIPTS[program].partition(":")
    if not words or words in (["-h"], ["--help"]):
        return
    with pytest.raises(Parsed):
        getattr(importlib.import_module(module), function)()


def test_the_index_leads_to_every_document() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w.]+)\)", index))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
