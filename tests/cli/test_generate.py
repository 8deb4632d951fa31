"""``smet-generate``: text on standard output as it comes, everything else on standard error."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from smet_train.cli import generate as command
from tests.programs import BOTH

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call_script: Call) -> Call:
    """The command with arguments: (exit status, output, errors)."""
    return partial(call_script, command)


def test_usage(call: Call) -> None:
    status, printed, _ = call()
    assert (status, printed.startswith("usage: smet-generate")) == (0, True)


def test_texts_follow_the_prompt_and_depend_on_their_seed_alone(call: Call, run_folder: Path) -> None:
    few = ["--max-tokens", "12"]
    status, two, errors = call(run_folder, "the model", *few, "--seed", "5", "--n", "2")
    assert status == 0
    first, second = two.split("\n\n" + "-" * 40 + "\n")
    assert first.startswith("the model")
    assert errors.count("tokens/s") == 2
    assert call(run_folder, "the model", *few, "--seed", "6")[1] == second
    greedy = [call(run_folder, "the model", *few, "--temperature", "0", "--seed", seed)[1] for seed in ("1", "2")]
    assert greedy[0] == greedy[1]


def test_the_prompt_from_standard_input(call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Käse\n".encode())))
    assert call(run_folder, "-", "--max-tokens", "1")[1].startswith("Käse\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Käse".encode("latin-1"))))
    status, _, errors = call(run_folder, "-")
    assert (status, "standard input is not UTF-8" in errors) == (2, True)


def test_a_prompt_that_is_not_text_is_one_line(call: Call, run_folder: Path) -> None:
    status, printed, errors = call(run_folder, os.fsdecode("Käse".encode("latin-1")))
    assert (status, printed, errors.startswith("smet-generate: the prompt is not UTF-8 text")) == (2, "", True)


@pytest.mark.parametrize("temperature", ["1e-40", "1e-9"])
def test_next_to_no_temperature_is_none(call: Call, run_folder: Path, temperature: str) -> None:
    status, coldest, _ = call(run_folder, "the model", "--max-tokens", "5", "--temperature", temperature)
    assert (status, coldest) == call(run_folder, "the model", "--max-tokens", "5", "--temperature", "0")[:2]


def test_positions_are_told(call: Call, run_folder: Path) -> None:
    status, _, errors = call(run_folder, " model" * 1020, "--temperature", "0")
    assert status == 0
    assert "the model has positions for 3 more tokens after the prompt, not for 100" in errors
    status, printed, errors = call(run_folder, " model" * 1100)
    assert (status, printed) == (2, "")
    assert errors.startswith("smet-generate: the prompt has 1100 tokens, and the model has positions for 1024")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--temperature", "-1", "'-1' is not a number of at least 0"),
        ("--temperature", "inf", "'inf' is not a number of at least 0"),
        ("--temperature", "nan", "'nan' is not a number of at least 0"),
        ("--top-p", "0", "'0' is not a number above 0 and at most 1"),
        ("--top-k", "1.5", "'1.5' is not a whole number of at least 0"),
        ("--backend", "fast", "invalid choice: 'fast'"),
    ],
)
def test_a_mistake_is_one_line(call: Call, run_folder: Path, flag: str, value: str, message: str) -> None:
    status, printed, errors = call(run_folder, "the", flag, value)
    assert (status, printed, len(errors.splitlines())) == (2, "", 1)
    assert message in errors


# Whoever started the tests in the background has them ignore Ctrl-C, and what they start too.
TYPED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from smet_train.cli.generate import main
main()
"""


@pytest.fixture
def endless(programs: ModuleType, run_folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A command that has begun to write and will not end by itself for long."""
    arguments = [str(run_folder), "the", "--max-tokens", "1000", "--n", "10000"]
    process = programs.Popen([sys.executable, "-c", TYPED, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert len(process.stdout.read(20)) == 20
    yield process
    process.kill()
    process.wait()


@BOTH
def test_ctrl_c_ends_it_without_a_traceback(endless: "subprocess.Popen[bytes]") -> None:
    endless.send_signal(signal.SIGINT)
    _, errors = endless.communicate(timeout=60)
    assert endless.returncode == 130
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away_ends_it(endless: "subprocess.Popen[bytes]") -> None:
    assert endless.stdout is not None
    assert endless.stderr is not None
    endless.stdout.close()
    errors = endless.stderr.read()
    assert endless.wait(timeout=60) == 1
    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors
