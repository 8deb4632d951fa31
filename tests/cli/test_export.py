"""``smet-export``: what it writes, what it says, and what it refuses before torch is imported."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from smet_train.cli import export as command
from smet_train.export.write import _WRITERS
from tests.programs import BOTH, without

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call_script: Call) -> Call:
    """The command with arguments: (exit status, output, errors)."""
    return partial(call_script, command)


@pytest.mark.parametrize("format", _WRITERS)
def test_a_run_folder_is_exported(
    call: Call, format: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, errors = call(run_folder, "--format", format, "--out", "models/little")
    assert (status, errors) == (0, "")
    assert f"step_00000006, step 6, as {format} in models/little" in printed
    assert "its parameters dense are" in printed
    names = {path.name for path in (tmp_path / "models" / "little").iterdir()}
    assert names >= {"README.md", "tokenizer.json", "tokenizer_config.json"}
    assert "# little\n" in (tmp_path / "models" / "little" / "README.md").read_text()
    status, _, errors = call(run_folder, "--format", format, "--out", "models/little")
    assert (status, "models/little is not empty" in errors) == (2, True)


MISTAKES = [
    (["nowhere", "--format", "hf", "--out", "new"], "nowhere does not exist; give a run folder"),
    ([".", "--format", "hf", "--out", "full"], "full is not empty, it holds file; empty it, or give another folder"),
    ([".", "--format", "onnx", "--out", "new"], "invalid choice: 'onnx'"),
    ([".", "--format", "hf"], "required: --out"),
    (["--format", "hf", "--out", "new"], "required: CHECKPOINT"),
]


@BOTH
@pytest.mark.parametrize(("arguments", "status", "expected"), [
    *((arguments, 2, message) for arguments, message in MISTAKES),
    ([], 0, "usage: smet-export [-h] [--version] [--plugins FILE] --format"),
    (["--help"], 0, "smet-export outputs/demo-1a2b3c4d --format hf --out exported/demo"),
])  # fmt: skip
def test_mistakes_and_questions_need_none_of_the_heavy_libraries(
    programs: ModuleType, arguments: list[str], status: int, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    script = without("torch", "transformers", "datasets", "safetensors", "rich") + (
        "from smet_train.cli.export import main\nmain()\n"
    )
    done = programs.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert expected in done.stdout + done.stderr
    if status:
        assert done.stderr.startswith("smet-export: ")
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_what_is_no_checkpoint_is_one_message(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, errors = call(tmp_path / "empty", "--format", "hf", "--out", tmp_path / "out")
    assert status == 2
    assert errors.startswith(f"smet-export: {tmp_path / 'empty'} is not a checkpoint")
    assert not (tmp_path / "out").exists()


def test_an_interruption_is_no_traceback(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smet_train.export.write.export", interrupt)
    assert call(run_folder, "--format", "hf", "--out", tmp_path / "out") == (130, "", "\n")
