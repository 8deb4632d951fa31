"""What model.init_from may name is seen before torch is imported."""

from pathlib import Path

import pytest

from smet_train.config.compose import compose
from smet_train.config.init_source import SourceKind, check_source, source_kind, source_tokenizer
from smet_train.config.paths import check_files, with_absolute_paths
from smet_train.config.schema import Config
from smet_train.errors import ConfigError


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["config.json", "model.safetensors"], SourceKind.huggingface),
        (["config.json", "model.safetensors.index.json", "pytorch_model.bin"], SourceKind.huggingface),
        (["config.yaml", "checkpoints/step_00000003/manifest.json"], SourceKind.run),
        (["step_00000003/manifest.json"], SourceKind.run),
        (["manifest.json", "state.json", "model.safetensors"], SourceKind.run),
        (["sparse.json", "model.safetensors", "transformers_config.json"], SourceKind.sparse),
    ],
)
def test_the_kind_is_seen_by_the_names_of_files(names: list[str], kind: SourceKind, tmp_path: Path) -> None:
    assert source_kind(folder_of(tmp_path, *names)) is kind


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no trained weights; give a folder with config.json and model.safetensors, a run folder"),
        (["config.json"], "holds no trained weights"),
        (["config.yaml"], "is a run folder without a checkpoint yet"),
        (["model.safetensors"], "has no config.json"),
        (["config.json", "pytorch_model.bin"], r"pickled weights alone.*AutoModelForCausalLM.from_pretrained\(.*save_"),
    ],
)
def test_what_can_not_be_begun_from_says_what_can(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        source_kind(folder_of(tmp_path, *names))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.init_from=.*nowhere does not exist; give"):
        source_kind(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a file; give"):
        source_kind(folder_of(tmp_path, "model.safetensors") / "model.safetensors")


def test_a_checkpoint_has_the_tokenizer_of_its_run_and_another_folder_its_own(tmp_path: Path) -> None:
    run = folder_of(tmp_path, "tokenizer.json", "checkpoints/step_00000003/manifest.json", "other/config.json")
    checkpoints = run / "checkpoints"
    for folder in (run, checkpoints, checkpoints / "step_00000003"):
        assert source_tokenizer(folder) == run / "tokenizer.json"
    assert source_tokenizer(run / "other") is None


def begin(folder: Path, *overrides: str) -> Config:
    return compose([f"model.init_from='{folder}'", *overrides])


def test_without_a_tokenizer_one_must_be_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "config.json", "model.safetensors")
    with pytest.raises(ConfigError, match=r"has no tokenizer.json, .*write data.tokenizer.file="):
        check_source(begin(tmp_path))
    check_source(begin(tmp_path, "data.tokenizer.hub_name=someone/something"))
    check_source(begin(tmp_path, f"data.tokenizer.file='{tmp_path}/config.json'"))
    (tmp_path / "tokenizer.json").touch()
    check_source(begin(tmp_path))


def test_it_is_looked_at_before_a_run_begins_and_not_when_it_goes_on(tmp_path: Path) -> None:
    config = begin(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        check_files(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000003").mkdir(parents=True)
    check_files(config, tmp_path / "run")


def test_a_checkpoint_to_start_from_is_looked_for_before_a_run_has_its_own(tmp_path: Path) -> None:
    config = compose([f"checkpoint.resume='{tmp_path}/nowhere'"])
    with pytest.raises(
        ConfigError, match=r"checkpoint\.resume=.*nowhere does not exist; write auto, never, or the path"
    ):
        check_files(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000003").mkdir(parents=True)
    check_files(config, tmp_path / "run")


def test_the_path_is_seen_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths(begin(Path("there"))).model.init_from == f"{tmp_path}/there"
