"""A sparse folder holds every value and every site, and little else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from smet_train.config.schema import Config
from smet_train.errors import CheckpointError
from smet_train.export import read_sparse, read_sparse_tensors
from smet_train.export.dense import dense_tensors
from smet_train.export.write import export
from smet_train.job import run_training
from smet_train.sparse.ledger import sparse_layers
from smet_train.train.state import model_tensors
from smet_train.trained import Trained
from tests.export.conftest import DOCS, SPARSE_RUNS, documented

TrainedAs = Callable[[str], Trained]
RunOf = Callable[[str], Path]


@pytest.mark.parametrize("name", SPARSE_RUNS)
def test_the_model_that_is_read_is_the_one_that_was_written(
    name: str, trained_as: TrainedAs, run_of: RunOf, tmp_path: Path
) -> None:
    trained = trained_as(name)
    export(run_of(name), "sparse", tmp_path / "out")
    model = read_sparse(tmp_path / "out")
    written, read = model_tensors(trained.model), model_tensors(model)
    assert written.keys() == read.keys()
    for key, tensor in written.items():
        assert tensor.dtype == read[key].dtype
        assert torch.equal(tensor, read[key])
    layouts = {name: layer.layout for name, layer in sparse_layers(trained.model).items()}
    assert {name: layer.layout for name, layer in sparse_layers(model).items()} == layouts
    assert not model.training
    assert type(model) is type(trained.model)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, trained.model(input_ids=tokens).logits)


@pytest.mark.parametrize("name", SPARSE_RUNS)
def test_the_reader_of_the_docs_makes_the_same_dense_weights(
    name: str, trained_as: TrainedAs, run_of: RunOf, tmp_path: Path
) -> None:
    trained = trained_as(name)
    export(run_of(name), "sparse", tmp_path / "out")
    read, written = documented("read_dense")(tmp_path / "out"), dense_tensors(trained.model)
    assert read.keys() <= written.keys()
    assert all(torch.equal(written[key], value) for key, value in read.items())
    config = trained.model.config
    model = AutoModelForCausalLM.from_config(config, dtype=next(iter(written.values())).dtype)
    model.load_state_dict(read, strict=False)
    model.tie_weights()
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        ours, theirs = (each.eval()(input_ids=tokens).logits for each in (trained.model, model))
    torch.testing.assert_close(ours, theirs)


def test_the_reader_of_the_docs_is_short_and_needs_three_libraries() -> None:
    block = next(part for part in DOCS.read_text("utf-8").split("```python\n") if "def read_dense" in part)
    code = block.partition("```")[0].strip().splitlines()
    assert len(code) <= 36
    imports = {line.split()[1].partition(".")[0] for line in code if line.startswith(("import ", "from "))}
    assert imports == {"json", "pathlib", "safetensors", "torch", "zlib"}


def test_tensors_come_with_their_sites_and_the_tokenizer_with_them(
    trained_as: TrainedAs, run_of: RunOf, tmp_path: Path
) -> None:
    trained = trained_as("gpt2")
    export(run_of("gpt2"), "sparse", tmp_path / "out")
    tensors, description = read_sparse_tensors(tmp_path / "out")
    layers = sparse_layers(trained.model)
    assert description.layers.keys() == layers.keys() == description.transposed
    for name, layer in layers.items():
        assert torch.equal(tensors[f"{name}.index"], layer.index)
        assert torch.equal(tensors[f"{name}.values"], layer.values)
        assert layer.bias is not None
        assert torch.equal(tensors[f"{name}.bias"], layer.bias)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the model")["input_ids"] == trained.tokenizer.encode("the model")


def test_sparse_layers_take_115_percent_of_density_times_dense(
    quick_config: Callable[..., Config], tmp_path: Path
) -> None:
    """At density 0.1 in fp32, after topology updates, in layers of 256 x 256 and more."""
    shape = ["model.hidden_size=256", "model.intermediate_size=512", "model.layers=1", "sparsity.density=0.1"]
    run_training(quick_config(*shape), tmp_path / "run")
    export(tmp_path / "run", "sparse", tmp_path / "out")
    _, description = read_sparse_tensors(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    held = sum(stored[f"{name}.{key}"].nbytes for name in description.layers for key in ("values", "index"))
    dense = sum(4 * layout.weights for layout in description.layers.values())
    assert held <= 1.15 * 0.1 * dense


def damage_version(folder: Path) -> None:
    content = json.loads((folder / "sparse.json").read_text())
    (folder / "sparse.json").write_text(json.dumps(content | {"version": 9}))


def damage_count(folder: Path) -> None:
    content = json.loads((folder / "sparse.json").read_text())
    next(iter(content["layers"].values()))["n_active"] = 7
    (folder / "sparse.json").write_text(json.dumps(content))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


VALUES = "model.layers.0.self_attn.q_proj.values"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no description": (lambda folder: (folder / "sparse.json").unlink(), "is no sparse folder: it has no sparse.json"),
    "not JSON": (lambda folder: (folder / "sparse.json").write_text("{"), "can't be used: Expecting property name"),
    "key lost": (lambda folder: (folder / "sparse.json").write_text("{}"), "can't be used: format is missing"),
    "another version": (damage_version, "is smet-sparse 9, this version of smet-train reads smet-sparse 1"),
    "no architecture": (lambda folder: (folder / "transformers_config.json").unlink(), "No such file"),
    "count": (damage_count, "marks 1024 of 4096 sites, not 7"),
    "torn": (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "model.safetensors can't be used"),
    "lost": (lambda folder: change_tensors(folder, lambda t: t.pop(VALUES)), f"can't be used: {VALUES} is missing"),
    "shape": (
        lambda folder: change_tensors(folder, lambda t: t.update({VALUES: t[VALUES][1:].clone()})),
        f"{VALUES} has the shape (1023,), not (1024,)",
    ),
    "dense rest lost": (
        lambda folder: change_tensors(folder, lambda t: t.pop("model.norm.weight")),
        "model.norm.weight is on one side only",
    ),
    "too much": (
        lambda folder: change_tensors(folder, lambda t: t.update(more=torch.ones(1))),
        "more is on one side only",
    ),
    "unknown architecture": (
        lambda folder: (folder / "transformers_config.json").write_text('{"model_type": "unheard"}'),
        "transformers_config.json: transformers can't build it",
    ),
}


@pytest.fixture(scope="module")
def good_folder(run_of: RunOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "out"
    export(run_of("llama_gqa"), "sparse", folder)
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_message(kind: str, good_folder: Path, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    shutil.copytree(good_folder, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError) as caught:
        read_sparse(tmp_path / "out")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
