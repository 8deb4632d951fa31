"""docs/tutorial.md, typed in an empty folder, prints what it shows."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT
from tests.test_docs import SCRIPTS
from tests.transcript import Step, difference, normal, steps

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def console_script(name: str) -> str:
    """What pip installs under this name, as Python code."""
    module, _, function = SCRIPTS[name].partition(":")
    return f"import sys; from {module} import {function}; sys.argv[0] = '{name}'; sys.exit({function}())"


WORDS = {"python": [sys.executable], **{name: [sys.executable, "-c", console_script(name)] for name in SCRIPTS}}


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands of this checkout are found, and nothing is cached yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in WORDS.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the tutorial is that of a CPU
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "120",
    }


@pytest.mark.process
@pytest.mark.timeout(1200)
def test_what_is_typed_prints_what_is_shown(tmp_path: Path, shell: dict[str, str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    all_steps = steps(TUTORIAL)
    assert len(all_steps) >= 12
    wrong = []
    for step in all_steps:
        command = step.command.removesuffix(" || true")
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=empty,
            env=shell,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        told = difference(step.shown, done.stdout)
        if (done.returncode and command == step.command) or told:
            wrong.append(f"$ {step.command}\n{told}\nexit status {done.returncode}; printed:\n{done.stdout}")
    assert not wrong, "\n\n".join(wrong)


def test_the_steps_of_a_document_are_found_in_order() -> None:
    text = (
        "# T\n\n## One\n\n```console\n$ a b\nx\ny\n$ c\n```\n\n```bash\nno\n```\n\n## Two\n\n```console\n$ d\n…\n```\n"
    )
    assert steps(text) == [Step("a b", "x\ny\n"), Step("c", ""), Step("d", "…\n")]


@pytest.mark.parametrize(
    ("shown", "actual"),
    [
        ("step 1/9  loss 6.98  10 tokens/s", "step 1/9  loss 7.0123  1,234 tokens/s"),
        ("in 12 s, 0.56 GiB", "in 3 s, 900.1 MiB"),
        ("a\n…\nz", "a\nb\nc\nz"),
        ("a\n…", "a\nb"),
        ("a\n…\nz", "a\nz"),
        ("run folder  …/runs/a", "run folder  /tmp/x/runs/a"),
        ("│ a │ 1 │", "┏━━┓\n┃ a      ┃ 1 ┃\n└──┘"),
        ("spike +0.30 over 6.02", "spike -0.0100 over 6.1234"),
    ],
)
def test_what_may_differ(shown: str, actual: str) -> None:
    assert difference(shown, actual) is None


@pytest.mark.parametrize(
    ("shown", "actual", "told"),
    [
        ("step 1/9", "step 1/8", "shown: step 1/9\nthere: step 1/8"),
        ("shape 128x352", "shape 352x128", "there: shape 352x128"),
        ("density=0.05", "density=0.15", "there: density=0.15"),
        ("llama_130m_density0.25", "llama_130m_density0.10", "shown: llama"),
        ("dropped 7,278", "dropped 7,279", "there: dropped 7,279"),
        ("a\nb", "a", "there: nothing more"),
        ("a", "a\nb", "shown: nothing more\nthere: b"),
        ("a\n…\nz", "a\nb", "shown: z"),
        ("step_00000100", "step_00000120", "shown: step_00000100"),
        ("density 0.1", "density 0.2", "shown: density 0.1"),
    ],
)
def test_what_may_not_differ(shown: str, actual: str, told: str) -> None:
    found = difference(shown, actual)
    assert found is not None
    assert told in found


def test_numbers_that_depend_on_the_machine_are_masked_and_names_are_not() -> None:
    line = "step 20  spike (train loss): +0.3019 over 6.0235, recovered in 8 steps (window 15 steps)"
    assert normal(line) == ["step 20 spike (train loss): # over #, recovered in 8 steps (window 15 steps)"]
    assert normal("about 4 s for 100 steps at 24 steps/s (steps 2 to 4)") == [
        "about # for 100 steps at # (steps 2 to 4)"
    ]
