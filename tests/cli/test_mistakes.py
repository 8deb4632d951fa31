"""A mistake gives one clear message, no traceback, and exit status 2; a failure gives 1."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from smet_train.cli import eval as evaluation
from smet_train.cli import export, generate, report, train
from smet_train.errors import ConfigError
from tests import forked
from tests.programs import BOTH, without

SmetTrain = Callable[..., subprocess.CompletedProcess[str]]

MISTAKES = [
    (["sparsity.density=1.5"], 2, "sparsity.density=1.5 is out of range"),
    (["sparsity.densty=0.1"], 2, "unknown key sparsity.densty; did you mean sparsity.density?"),
    (["data=text", "data.files=[nowhere/*.txt]"], 2, "data.files=['nowhere/*.txt'] matches no file"),
    (["data=text", "data.files=[empty.txt]"], 2, "empty.txt: the file is empty, there is nothing to train on"),
    (["data=text", "data.files=[binary.bin]"], 2, "binary.bin line 1: it is not text but holds a NUL byte"),
    (["data=text", "data.files=[latin.txt]"], 2, "latin.txt line 1: it is not UTF-8 text"),
    (["+experiment=nope"], 2, "there is no experiment=nope"),
    (["+experiment=llama_130m_density0.1"], 1, "data.name=allenai/c4: Couldn't reach"),
    (["checkpoint.resume=/not/there"], 2, "checkpoint.resume=/not/there does not exist"),
    (["train.micro_batch_size=7"], 2, "train.micro_batch_size=7 does not divide train.batch_size=512"),
    (["sparsity.density=0.1,0.2"], 2, "add -m to run a sweep"),
    (["experiment=demo"], 2, "+experiment=NAME"),
    (["data=text", "data.files=[two words]x"], 2, "cannot read"),
    (["model=auto", "model.config_file=empty.txt"], 2, "empty.txt"),
    (["data.tokenizer.file=nowhere.json"], 2, "nowhere.json"),
]


@pytest.fixture
def bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "latin.txt").write_bytes("Käse und Brot\n".encode("latin-1") * 50)


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("arguments", "status", "message"), MISTAKES, ids=lambda value: str(value))
def test_one_clear_message(smet_train: SmetTrain, arguments: list[str], status: int, message: str) -> None:
    done = smet_train(*arguments, "train.steps=1", "data.cache_dir=cache")
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("smet-train: ")
    assert len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.stdout + done.stderr


@BOTH
def test_a_gpu_that_no_driver_is_there_for_is_refused_before_torch_is_read(
    programs: ModuleType, tmp_path: Path
) -> None:
    script = without("torch", "transformers", "datasets", "wandb") + (
        "from smet_train import gpu_driver\n"
        "from smet_train.cli.train import main\n"
        "gpu_driver.has_driver = lambda: False\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "train.device=cuda", "hydra.run.dir=run"]
    done = programs.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "smet-train: train.device=cuda: there is no driver for a GPU on this machine; write train.device=cpu or auto\n"
    )
    assert list(tmp_path.iterdir()) == []


@BOTH
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "sparsity.density=0.1"),
        (["--cfg", "job", "+experiment=llama_1b_density0.1"], "hidden_size: 2048"),
        ([], "smet-train --help tells everything"),
    ],
)
def test_questions_about_the_command_need_none_of_the_heavy_libraries(
    programs: ModuleType, arguments: list[str], expected: str
) -> None:
    script = without("torch", "transformers", "datasets", "wandb", "rich") + (
        "from smet_train.cli.train import main\nmain()\n"
    )
    done = programs.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_an_unknown_failure_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(train, "launch", fail)
    monkeypatch.setattr(sys, "argv", ["smet-train", "+experiment=demo"])
    with pytest.raises(SystemExit) as left:
        train.main()
    assert left.value.code == 1
    assert "RuntimeError: out of luck" in capsys.readouterr().err


@pytest.mark.parametrize("ask", [lambda: torch.empty(10**15), lambda: bytearray(10**15)], ids=["torch", "Python"])
def test_too_little_memory_is_one_message_with_what_to_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ask: Callable[[], object]
) -> None:
    monkeypatch.setattr(train, "launch", lambda *_: ask())
    monkeypatch.setattr(sys, "argv", ["smet-train", "+experiment=demo"])
    with pytest.raises(SystemExit) as left:
        train.main()
    assert left.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("smet-train: out of memory: ")
    assert "Lower train.micro_batch_size" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("script", "advice"),
    [
        (evaluation, "Lower --batch-size"),
        (export, "Write --format sparse"),
        (generate, "Lower --max-tokens"),
        (report, "Report fewer runs at once"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, ModuleType) else "",
)
def test_too_little_memory_after_training_too(
    call_script: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    script: ModuleType,
    advice: str,
) -> None:
    arguments = {generate: ["run", "prompt"], export: ["run", "--format", "hf", "--out", "out"]}.get(script, ["run"])
    monkeypatch.setattr(script, "_run", lambda _: torch.empty(10**15))
    status, _, told = call_script(script, *arguments)
    assert status == 1
    assert "out of memory: " in told
    assert advice in told
    assert "Traceback" not in told


def test_an_unknown_failure_after_training_shows_where_it_was(
    call_script: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_run", lambda _: [][0])
    with pytest.raises(IndexError):
        call_script(report, "run")


@pytest.mark.parametrize(("under_torchrun", "waits"), [(True, [10.0]), (False, [])], ids=["torchrun", "alone"])
def test_an_error_that_another_process_tells_waits_for_it_where_it_would_be_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], under_torchrun: bool, waits: list[float]
) -> None:
    waited: list[float] = []

    def fail(*_: object) -> int:
        error = ConfigError("seed=x is not a whole number")
        error.told = True
        raise error

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(train, "launch", fail)
    monkeypatch.setattr("smet_train.cli.train.time.sleep", waited.append)
    monkeypatch.setattr(sys, "argv", ["smet-train", "seed=x"])
    with pytest.raises(SystemExit) as left:
        train.main()
    assert (left.value.code, waited, capsys.readouterr().err) == (2, waits, "")


def test_a_crash_of_a_library_shows_where_it_was() -> None:
    code = """
import os
from smet_train.cli import train
def crash(_words):
    os.abort()
train._status = crash
train.main()
"""
    done = forked.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
    assert "in crash" in done.stderr
