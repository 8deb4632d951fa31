from pathlib import Path

import pytest

from smet_train.config.compose import compose
from smet_train.config.launch import launch
from smet_train.config.locate import config_folder, group_options, groups
from smet_train.config.schema import Config, DataSource, Family, Precision
from smet_train.errors import ConfigError
from smet_train.optim.groups import lr_density_scale


def test_overrides_win_over_the_experiment_and_it_over_the_groups() -> None:
    config = compose(["+experiment=llama_130m_density0.1"])
    assert (config.data.source, config.data.name, config.model.hidden_size) == (DataSource.hub, "allenai/c4", 768)
    assert (config.sparsity.density, config.method, config.train.batch_size) == (0.1, "smet", 512)
    config = compose(
        ["+experiment=llama_130m_density0.1", "data=python_source", "method=dense", "sparsity.density=0.2"]
    )
    assert (config.data.source, config.data.name) == (DataSource.python_source, None)
    assert (config.method, config.sparsity.enabled, config.sparsity.density) == ("dense", False, 0.2)
    config = compose(["+experiment=demo", "model=gpt2_124m", "train.precision=bf16_mixed"])
    assert (config.model.family, config.train.precision) == (Family.gpt2, Precision.bf16_mixed)


@pytest.mark.parametrize("experiment", ["demo", "tutorial"])
def test_sparse_methods_begin_at_like_rates_in_what_a_newcomer_types(experiment: str) -> None:
    """Though their presets differ in what a density does to a rate."""
    found = {}
    for method in ("smet", "smet_rigl", "set", "static", "rigl"):
        config = compose([f"+experiment={experiment}", f"method={method}"])
        scale = lr_density_scale(config.optimizer.lr_density_rule.name, config.sparsity.density)
        found[method] = config.optimizer.lr * scale
    assert found == dict.fromkeys(found, pytest.approx(found["set"]))
    assert compose([f"+experiment={experiment}", "method=dense"]).optimizer.lr < found["set"] / 2
    assert compose(["optimizer.lr=3e-3", f"+experiment={experiment}", "method=set"]).optimizer.lr == 3e-3


def test_an_experiment_may_set_what_is_right_for_each_method(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "method").mkdir()
    text = "# @package _global_\noptimizer: {lr: '${smet.by_method:0.5,{set:0.25,rigl:0.125}}'}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    (tmp_path / "method" / "mine.yaml").write_text("# @package _global_\nmethod: mine\n")
    for method, rate in (("set", 0.25), ("rigl", 0.125), ("smet", 0.5), ("mine", 0.5)):
        config = compose(["+experiment=mine", f"method={method}"], config_dir=tmp_path)
        assert (config.method, config.optimizer.lr) == (method, rate)


def test_the_same_command_gives_the_same_configuration() -> None:
    assert compose(["+experiment=demo", "seed=3"]) == compose(["seed=3", "+experiment=demo"])


def test_defaults_live_in_the_schema() -> None:
    config = compose(["model=llama_60m"])
    assert config == Config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparsity.densty=0.1", "unknown key sparsity.densty; did you mean sparsity.density?"),
        ("density=0.1", "unknown key density; did you mean sparsity.density?"),
        ("lr=0.1", "unknown key lr; did you mean optimizer.lr?"),
        ("zzz=1", "unknown key zzz; smet-train --help lists all keys"),
        ("+sparsity.zzz=1", "unknown key sparsity.zzz"),
        ("experiment=demo", "experiment is chosen with a plus sign: write +experiment=NAME"),
        ("model=llama_131m", "there is no model=llama_131m; did you mean llama_130m"),
        (
            "method=zzzzzz",
            "there is no method=zzzzzz\nmethod is one of: dense, gmp, rigl, set, smet, smet_rigl, static",
        ),
        ("train.steps=many", "train.steps=many is not a whole number"),
        ("optimizer.lr=high", "optimizer.lr=high is not a number"),
        ("sparsity.enabled=perhaps", "sparsity.enabled=perhaps is not true or false"),
        ("train.precision=fp8", "train.precision=fp8 is not possible; write one of: fp32, bf16_mixed, bf16"),
        ("data.files=corpus.txt", "data.files takes a list"),
        ("optimizer.betas=[0.9,x]", "is not a number"),
        ("train.steps=null", "train.steps can't be null"),
        ("optimizer=adam", "optimizer is a section, not a value"),
        ("sparsity.density", "cannot read 'sparsity.density'"),
        ("data.files=[a b]c", "cannot read"),
        ("seed=1,2", "seed=1,2 gives several values: add -m to run a sweep"),
        ("sparsity.density=1.5", "sparsity.density=1.5 is out of range"),
    ],
)
def test_a_mistake_is_told_in_at_most_three_lines(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        compose([override])
    assert message in str(told.value)
    assert len(str(told.value).splitlines()) <= 3


def test_a_folder_of_ones_own_adds_experiments(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain:\n  steps: 7\n")
    assert compose(["+experiment=mine"], config_dir=tmp_path).train.steps == 7
    (tmp_path / "experiment" / "broken.yaml").write_text("train: [")
    with pytest.raises(ConfigError):
        compose(["+experiment=broken"], config_dir=tmp_path)


def fail(*_: object) -> int:
    raise AssertionError("must not be called")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-path", "elsewhere"], "--config-path would hide the shipped settings"),
        (["--multirun", "--cfg", "job"], "exclude each other"),
        (["--resolve"], "--resolve goes with --cfg"),
        (["-m", "seed=1,x"], "seed=x is not a whole number"),
        (["-m", "seeds=1,2"], "unknown key seeds; did you mean seed?"),
        (["hydra.mode=MULTIRUN", "seed=1,x"], "seed=x is not a whole number"),
        (["train.steps=0"], "train.steps=0 is out of range"),
    ],
)
def test_a_command_is_refused_before_anything_is_made(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        launch(fail, arguments)
    assert list(tmp_path.iterdir()) == []


def test_launch_hands_over_configuration_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Path]] = []

    def run(config: Config, folder: Path) -> int:
        seen.append((config.seed, folder))
        return 3

    monkeypatch.chdir(tmp_path)
    assert launch(run, ["seed=7", "hydra.run.dir=here"]) == 3
    assert seen == [(7, tmp_path / "here")]


def test_an_error_of_the_run_comes_through_and_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(_: Config, folder: Path) -> int:
        (folder / "metrics.jsonl").touch()
        raise ConfigError("no such luck")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such luck"):
        launch(run, ["hydra.run.dir=here"])
    assert "no such luck" in (tmp_path / "here" / "train.log").read_text()
    assert capfd.readouterr().err == ""


def test_yaml_files_come_from_the_checkout_else_from_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert config_folder().name == "configs"
    assert "experiment" in groups()
    assert {"demo", "llama_130m_dense"} < set(group_options("experiment"))
    package = tmp_path / "smet_train"
    monkeypatch.setattr("smet_train.config.locate.__file__", str(package / "config" / "locate.py"))
    assert config_folder() == package / "_configs"


ISSUED = ["demo", "gpt2_124m_density0.1", "llama_130m_dense", "llama_60m_density0.1", "llama_350m_density0.25"]
ISSUED += [f"llama_130m_density{density}" for density in ("0.1", "0.25", "0.5")]
ISSUED += [f"llama_1b_density{density}" for density in ("0.1", "0.3", "0.5")]


@pytest.mark.parametrize("name", ISSUED)
def test_an_experiment_is_what_its_name_says(name: str) -> None:
    config = compose([f"+experiment={name}"])
    if "density" in name:
        assert config.sparsity.density == float(name.partition("density")[2])
    assert config.sparsity.enabled == (not name.endswith("dense"))
    assert config.model.family is (Family.gpt2 if name.startswith("gpt2") else Family.llama)


LLAMA = {
    "9m": (128, 352, 4, 4),
    "20m": (256, 688, 4, 4),
    "35m": (384, 1024, 6, 8),
    "60m": (512, 1376, 8, 8),
    "130m": (768, 2048, 12, 12),
    "240m": (768, 2416, 24, 16),
    "250m": (768, 2560, 24, 16),
    "350m": (1024, 2736, 24, 16),
    "1b": (2048, 5461, 24, 32),
    "3b": (2560, 6848, 32, 32),
    "7b": (4096, 11008, 32, 32),
}
GPT2 = {"124m": (768, 3072, 12, 12), "355m": (1024, 4096, 24, 16), "774m": (1280, 5120, 36, 20)}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((f"llama_{size}", shape) for size, shape in LLAMA.items()),
        *((f"gpt2_{size}", shape) for size, shape in GPT2.items()),
    ],
)
def test_models_have_the_shapes_of_the_literature(name: str, shape: tuple[int, ...]) -> None:
    model = compose([f"model={name}"]).model
    assert (model.hidden_size, model.intermediate_size, model.layers, model.heads) == shape
    assert model.kv_heads is None


@pytest.mark.parametrize("files", [[], ["+debug=quick"], ["+experiment=tutorial"]])
def test_sizes_that_a_config_file_has_may_stand_in_files_but_not_in_a_command(files: list[str]) -> None:
    auto = ["model=auto", "model.config_file=config.json", *files]
    assert compose(auto).model.family is Family.auto
    assert compose([*auto, "model.layers=8"]).model.layers == 8  # the default, as earlier commands had to say
    with pytest.raises(
        ConfigError, match=r"model.layers=3 is not read with model.family=auto; leave it out and set it"
    ):
        compose([*auto, "model.layers=3"])
