"""A model opened from its checkpoint is the one that was trained."""

import importlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smet_train.config.plain import from_dict, to_dict
from smet_train.config.schema import Config
from smet_train.errors import BackendError, CheckpointError, ConfigError
from smet_train.initial import open_pretrained
from smet_train.job import run_training
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import checkpoint
from smet_train.train.checkpoint import checkpoint_path, load_checkpoint
from smet_train.train.resume import find_checkpoint
from smet_train.train.state import model_tensors
from smet_train.trained import open_trained

Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def run_folder(quick_config: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_training(quick_config("sparsity.density=0.25", "sparsity.backend=csr", "checkpoint.interval=3"), folder)
    return folder


def test_holds_what_the_checkpoint_holds(run_folder: Path) -> None:
    trained = open_trained(run_folder)
    saved = load_checkpoint(trained.checkpoint)
    assert trained.step == 6
    assert trained.run_folder == run_folder
    assert to_dict(trained.config) == saved.plain["config"]
    assert not trained.model.training
    held = model_tensors(trained.model)
    assert held.keys() == saved.tensors["model"].keys()
    assert all(torch.equal(held[name], saved.tensors["model"][name]) for name in held)
    layers = sparse_layers(trained.model)
    assert {layer.backend.name for layer in layers.values()} == {"csr"}
    assert trained.densities.keys() == layers.keys()


@pytest.mark.parametrize("where", ["run", "checkpoints", "checkpoint"])
def test_a_run_folder_gives_its_newest_checkpoint(run_folder: Path, where: str) -> None:
    newest = run_folder / "checkpoints" / "step_00000006"
    given = {"run": run_folder, "checkpoints": run_folder / "checkpoints", "checkpoint": newest}[where]
    assert find_checkpoint(given) == newest
    assert find_checkpoint(newest.parent / "step_00000003") == newest.parent / "step_00000003"


def rotated(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, times: int) -> None:
    """The run saves, and deletes what it had, before ``name`` reads each of the first ``times`` checkpoints."""
    place, _, function = name.rpartition(".")
    real, left = getattr(importlib.import_module(place), function), [times]

    def deleted(path: Path, *arguments: Any, **named: Any) -> Any:
        if left[0] and path.parent == folder / "checkpoints":
            left[0] -= 1
            step = int(path.name.removeprefix("step_"))
            newer = checkpoint_path(path.parent, step + 1)
            path.rename(newer)
            manifest = json.loads((newer / "manifest.json").read_text())
            del manifest["checksum"]
            manifest["step"] = step + 1
            manifest["checksum"] = checkpoint._own_checksum(manifest)
            (newer / "manifest.json").write_text(json.dumps(manifest))
        return real(path, *arguments, **named)

    monkeypatch.setattr(name, deleted)


@pytest.mark.parametrize("name", ["smet_train.train.resume.what_is_wrong", "smet_train.trained.load_checkpoint"])
def test_where_a_run_rotates_the_next_checkpoint_is_taken(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000003")
    rotated(monkeypatch, folder, name, 3)
    assert open_trained(folder).checkpoint == folder / "checkpoints" / "step_00000009"
    assert not caplog.records


def test_a_named_checkpoint_that_is_rotated_away_is_told_so(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    rotated(monkeypatch, folder, "smet_train.trained.load_checkpoint", 1)
    with pytest.raises(CheckpointError, match=r"step_00000006 was deleted while it was read, .* give its run folder"):
        open_trained(folder / "checkpoints" / "step_00000006")


def test_weights_to_begin_from_that_are_rotated_away_are_those_of_the_next(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_config: Configure
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    rotated(monkeypatch, folder, "smet_train.initial.load_plain", 2)
    opened = open_pretrained(quick_config("sparsity.density=0.25", f"model.init_from={folder}"))
    assert opened.name == str(folder / "checkpoints" / "step_00000008")
    shutil.rmtree(folder / "checkpoints" / "step_00000008")
    with pytest.raises(ConfigError, match="step_00000008 was deleted while it was read; type the command again"):
        opened.tensors.read(opened.tensors.names[0])


@pytest.mark.parametrize("typed", [".", "../step_00000003", ".."])
def test_a_checkpoint_is_found_from_inside_its_run(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(run_folder / "checkpoints" / "step_00000003")
    trained = open_trained(Path(typed))
    assert trained.run_folder.resolve() == run_folder.resolve()
    assert trained.step == (6 if typed == ".." else 3)


def test_another_backend_computes_the_same(run_folder: Path) -> None:
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        own, other = (
            open_trained(run_folder, backend=backend).model(input_ids=tokens).logits for backend in (None, "reference")
        )
    torch.testing.assert_close(own, other)


def test_an_unable_backend_is_refused_when_asked_for_and_replaced_when_it_is_the_runs(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BackendError, match="block"):
        open_trained(run_folder, backend="block")
    monkeypatch.setattr("smet_train.sparse.backends.csr.CsrBackend.unsupported", lambda *_: "no compiler")
    with caplog.at_level(logging.WARNING):
        trained = open_trained(run_folder)
    assert {layer.backend.name for layer in sparse_layers(trained.model).values()} == {"densify"}
    assert "no compiler" in caplog.text


def test_gmp_is_opened_at_the_density_it_has_reached(quick_config: Configure, tmp_path: Path) -> None:
    run_training(quick_config("method=gmp", "sparsity.density=0.25"), tmp_path / "run")
    saved = load_checkpoint(find_checkpoint(tmp_path / "run")).tensors["model"]
    held = model_tensors(open_trained(tmp_path / "run").model)
    assert all(torch.equal(held[name], saved[name]) for name in saved)


def test_what_is_no_run_or_damaged_is_told_and_nothing_renamed(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "sparse.json").touch()
    with pytest.raises(
        CheckpointError, match="is an exported model, not a checkpoint: its README.md says how to load it"
    ):
        find_checkpoint(tmp_path / "exported")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(CheckpointError, match="without a checkpoint yet"):
        find_checkpoint(tmp_path)
    shutil.copytree(run_folder, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    (newest / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"can't be used: model.safetensors has 4 bytes"):
        find_checkpoint(newest)
    assert find_checkpoint(tmp_path / "run").name == "step_00000003"
    assert newest.is_dir()


def test_a_checkpoint_without_its_tokenizer_is_refused(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json is missing"):
        open_trained(tmp_path / "run")


def test_another_tokenizer_in_its_place_is_refused(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is not the tokenizer that step_00000006 was trained with"):
        open_trained(tmp_path / "run")


def test_settings_go_to_a_dictionary_and_back(quick_config: Configure) -> None:
    config = quick_config("method=rigl", "train.max_hours=2")
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match="sparsity.colour is of another version"):
        from_dict({"sparsity": {"colour": 1}})
    with pytest.raises(ConfigError, match="topology.grow=sideways is of another version"):
        from_dict({"topology": {"grow": "sideways"}})
