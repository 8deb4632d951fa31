"""Folders from somebody else: no code of theirs is run, nothing is written through their links."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import LlamaConfig

from smet_train import opening
from smet_train.cli.processes import run_processes
from smet_train.config.launch import resume
from smet_train.config.new_folder import check_own
from smet_train.config.schema import Config
from smet_train.data.cache import own_cache
from smet_train.errors import CheckpointError, ConfigError, SmetError
from smet_train.evaluation.report import evaluate_text
from smet_train.evaluation.results import require_own_evals
from smet_train.initial import _from_json
from smet_train.job import run_training
from smet_train.models import ModelSpec, build_model
from smet_train.offspring import python_of_children
from smet_train.report.report import build_report, write_report
from smet_train.report.runs import ReportError, find
from smet_train.train.checkpoint import _own_checksum
from smet_train.train.files import read_checksum
from smet_train.train.lock import run_folder_lock
from smet_train.trained import open_trained
from tests import forked


@pytest.fixture(scope="module")
def finished(quick_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run_training(quick_config("model.layers=1", "train.steps=2"), folder, Console(quiet=True)) == 0
    return folder


@pytest.fixture
def stranger(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be made somebody else's."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def sign(checkpoint: Path) -> None:
    """Make the manifest one of the files as they are."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["checksum"]
    for name in manifest["files"]:
        written = read_checksum(checkpoint / name)
        manifest["files"][name] = {"n_bytes": written.n_bytes, "checksum": written.checksum}
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "checksum": _own_checksum(manifest)}))


def change_settings(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """In config.yaml and in the checkpoint, which is signed."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    change(settings)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    checkpoint = run / "checkpoints" / "step_00000002"
    state = json.loads((checkpoint / "state.json").read_text())
    change(state["config"])
    (checkpoint / "state.json").write_text(json.dumps(state))
    sign(checkpoint)


def fresh(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """One that leaves a file when it is run."""
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    return tmp_path / "mine.py"


def test_the_plugins_of_a_folder_are_not_run(stranger: Path, plugin: Path, tmp_path: Path) -> None:
    change_settings(stranger, lambda settings: settings.update(plugins=[str(plugin)]))
    open_trained(stranger)
    run: Callable[..., int] = lambda *_: 0  # noqa: E731
    with pytest.raises(ConfigError, match=rf"names plugins=\[{plugin}\], which is Python code; if it is yours, repeat"):
        resume(run, [str(stranger), "train.steps=4"])
    assert not (tmp_path / "ran").exists()
    assert resume(run, [str(stranger), "train.steps=4", "plugins=[]"]) == 0
    assert not (tmp_path / "ran").exists()
    assert resume(run, [str(stranger), "train.steps=4", f"plugins=['{plugin}']"]) == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", opening.WRITTEN)
def test_a_run_adds_to_nothing_through_a_link(
    quick_config: Callable[..., Config], stranger: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    if (stranger / name).is_dir() or name in ("inspect", "evals", "wandb", "tensorboard", "report"):
        victim.mkdir()
        (victim / "step_00000001").mkdir()
    else:
        victim.write_text("precious")
    if (stranger / name).is_dir():
        shutil.rmtree(stranger / name)
    else:
        (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to(victim)
    with pytest.raises(
        ConfigError, match=f"{name} is not the run's own: it is a link, through which nothing is written"
    ):
        run_training(quick_config("model.layers=1", "train.steps=4"), stranger, Console(quiet=True))
    with pytest.raises(ConfigError, match=f"{name} is not the run's own"):
        resume(lambda *_: 0, [str(stranger), "train.steps=4"])
    assert victim.read_text() == "precious" if victim.is_file() else os.listdir(victim) == ["step_00000001"]


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(CheckpointError, match=r"\.lock can't be written \(it is a link"), run_folder_lock(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_linked_folder_of_checkpoints_is_asked_for(
    quick_config: Callable[..., Config], stranger: Path, tmp_path: Path
) -> None:
    (stranger / "checkpoints").rename(tmp_path / "elsewhere")
    (stranger / "checkpoints").symlink_to(tmp_path / "elsewhere")
    longer = ("model.layers=1", "train.steps=3")
    with pytest.raises(ConfigError, match=r"write checkpoint\.follow_link=true if it is yours"):
        run_training(quick_config(*longer), stranger, Console(quiet=True))
    config = quick_config(*longer, "checkpoint.follow_link=true")
    assert run_training(config, stranger, Console(quiet=True)) == 0
    assert (tmp_path / "elsewhere" / "step_00000003").is_dir()
    with pytest.raises(ConfigError, match=r"write checkpoint\.follow_link=true"):  # its config.yaml says so
        resume(lambda *_: 0, [str(stranger), "train.steps=4"])
    assert resume(lambda *_: 0, [str(stranger), "train.steps=4", "checkpoint.follow_link=true"]) == 0
    (stranger / "checkpoints").unlink()
    (stranger / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not the run's own"):
        check_own(stranger, follow_link=True)


@pytest.mark.slow
def test_a_report_and_results_are_written_through_no_link(stranger: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim.html").write_text("precious")
    report = build_report(find([stranger]))
    (stranger / "report.html").symlink_to(tmp_path / "victim.html")
    (stranger / "report").mkdir()
    (stranger / "report" / "loss.png").symlink_to(tmp_path / "victim.html")
    write_report(report, stranger)
    assert (tmp_path / "victim.html").read_text() == "precious"
    shutil.rmtree(stranger / "report")
    (stranger / "report").symlink_to(tmp_path / "victim")
    (stranger / "evals").symlink_to(tmp_path / "victim")
    with pytest.raises(ReportError, match="it is a link"):
        write_report(report, stranger)
    with pytest.raises(SmetError, match=r"evals is not the run's own: it is a link.*; write --out FILE"):
        require_own_evals(stranger / "evals")
    with pytest.raises(SmetError, match="evals is not the run's own"):
        evaluate_text(Console(quiet=True), open_trained(stranger), "eval", None, None, out=None, batch_size=None,
                      command=[], started=0.0)  # fmt: skip
    assert not os.listdir(tmp_path / "victim")


def test_a_cache_is_made_where_the_command_line_says_alone(
    stranger: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    change_settings(stranger, lambda settings: settings["data"].update(cache_dir=str(home)))
    assert open_trained(stranger).config.data.cache_dir is None
    assert "is no cache of smet-train here; the default is taken" in caplog.text
    (home / "tokenizers").mkdir()
    assert own_cache(str(home)) == str(home)
    assert open_trained(stranger).config.data.cache_dir == str(home)


CONFIG = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2).to_dict()
CODE = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}


@pytest.mark.parametrize(
    "named",
    [
        {"auto_map": CODE},
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": "somebody/kernel@main:f"},
        {"extra_settings": {"auto_map": CODE}},
        {"kernel_config": {"RMSNorm": "somebody/kernel"}},
    ],
)
def test_code_that_a_config_json_names_is_left_out(
    tmp_path: Path, named: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **named, "_name_or_path": str(tmp_path)}))
    spec = ModelSpec("auto", 0, 0, 0, 0, config_file=str(tmp_path / "config.json"))
    model = build_model(spec, vocab_size=20, sequence_tokens=8, eos_id=0, seed=1)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert f"config.json names code ({next(iter(named.get('extra_settings', named)))})" in caplog.text
    assert not hasattr(_from_json(tmp_path / "config.json"), "auto_map")
    assert not (tmp_path / "ran").exists()


def test_a_model_of_code_alone_is_refused_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "auto_map": CODE}))
    spec = ModelSpec("auto", 0, 0, 0, 0, config_file=str(tmp_path / "config.json"))
    with pytest.raises(ConfigError, match="transformers (cannot build|has no language model)"):
        build_model(spec, vocab_size=20, sequence_tokens=8, eos_id=0, seed=1)


@pytest.mark.slow
def test_children_import_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_of_children() == [sys.executable, "-P"]
    (tmp_path / "queue.py").write_text("raise SystemExit('a queue of mine')")
    (tmp_path / "smet_train.py").write_text("raise SystemExit('a program of mine')")
    code = [*python_of_children(), "-m", "smet_train", "--version"]
    done = forked.run(code, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    started: list[list[str]] = []

    def start(_self: Any, _: int, command: list[str]) -> None:
        started.append(command)

    monkeypatch.setattr("smet_train.cli.processes._Group.start", start)
    assert run_processes(2, tmp_path, ["+experiment=demo"]) == 0
    assert started[0][:4] == [*python_of_children(), "-m", "smet_train"]
