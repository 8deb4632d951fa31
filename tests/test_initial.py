"""Runs that begin from trained weights: what they take over, what not, and that they go on without the source."""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from smet_train.build import beginning
from smet_train.config.identity import run_identity
from smet_train.config.schema import Config
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import CheckpointError, ConfigError
from smet_train.export.sparse import write_sparse
from smet_train.initial import open_pretrained
from smet_train.job import run_training
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse_model import build_sparse_model, planned_vocabulary
from smet_train.tracking.jsonl import read_events
from smet_train.train.checkpoint import load_checkpoint
from smet_train.train.state import model_tensors
from smet_train.trained import open_trained

pytestmark = pytest.mark.slow

Configure = Callable[..., Config]
GPT2 = ("model.family=gpt2", "model.tie_embeddings=true")


def train(config: Config, folder: Path) -> str:
    console = Console(width=120, record=True, file=io.StringIO(), highlight=False)
    assert run_training(config, folder, console) == 0
    return console.export_text()


def begun(config: Config) -> torch.nn.Module:
    """The model of a run of ``config`` at step 0."""
    pretrained = open_pretrained(config)
    model, _ = build_sparse_model(config, planned_vocabulary(config), torch.device("cpu"), pretrained=pretrained)
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=torch.arange(40).view(2, 20)).logits
    return result


def llama(vocab_size: int, hidden_size: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        **more,
    )


def from_(folder: Path) -> str:
    return f"model.init_from='{folder}'"


@pytest.fixture(scope="module")
def dense_run(quick_config: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "run"
    train(quick_config("method=dense", "train.steps=40", "optimizer.lr=5e-3", "train.eval_interval=0"), folder)
    return folder


@pytest.fixture(scope="module", params=[1, 8], ids=["single", "blocks"])
def sparse_run(
    request: pytest.FixtureRequest, quick_config: Configure, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("sparse") / "run"
    train(quick_config("sparsity.density=0.25", f"sparsity.block_size={request.param}"), folder)
    return folder


@pytest.fixture(scope="module")
def hf_folder(dense_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    trained = open_trained(dense_run)
    trained.model.save_pretrained(folder)  # type: ignore[operator]
    trained.tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("overrides", [["method=dense"], ["sparsity.density=1"], ["method=gmp", "topology.interval=2"]])
def test_a_dense_source_is_gone_on_with_exactly(overrides: list[str], quick_config: Configure, dense_run: Path) -> None:
    wanted = logits(open_trained(dense_run).model)
    assert logits(begun(quick_config(from_(dense_run), *overrides))).equal(wanted)


def test_a_hugging_face_folder_is_the_same_source(quick_config: Configure, dense_run: Path, hf_folder: Path) -> None:
    by_run, by_folder = (
        model_tensors(begun(quick_config(from_(folder), "sparsity.density=0.25"))) for folder in (dense_run, hf_folder)
    )
    assert all(tensor.equal(by_folder[name]) for name, tensor in by_run.items())
    config = quick_config(from_(hf_folder), "method=dense")
    assert logits(begun(config)).equal(logits(AutoModelForCausalLM.from_pretrained(hf_folder).eval()))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_gpt2_stores_its_weights_transposed_and_is_taken_over_alike(
    tied: str, quick_config: Configure, tmp_path: Path
) -> None:
    settings = ("model.family=gpt2", f"model.tie_embeddings={tied}")
    source = tmp_path / "source"
    train(quick_config(*settings, "sparsity.density=0.5", "train.steps=2"), source)
    held = open_trained(source)
    for overrides in (["sparsity.density=0.5"], ["method=dense"]):
        assert logits(begun(quick_config(from_(source), *settings, *overrides))).equal(logits(held.model))
    denser = begun(quick_config(from_(source), *settings, "sparsity.density=1"))
    assert (
        sparse_layers(denser)["transformer.h.0.attn.c_attn"]
        .to_dense()
        .equal(sparse_layers(held.model)["transformer.h.0.attn.c_attn"].to_dense())
    )


def test_layers_keep_their_largest_weights_at_their_trained_size(quick_config: Configure, dense_run: Path) -> None:
    dense = open_trained(dense_run).model
    layers = sparse_layers(begun(quick_config(from_(dense_run), "sparsity.density=0.25")))
    assert layers
    for name, layer in layers.items():
        weight = dense.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        threshold = weight.detach().abs().flatten().topk(layer.layout.n_active).values[-1]
        assert layer.to_dense().equal(weight.detach() * (weight.detach().abs() >= threshold))


def test_a_sparse_source_of_the_same_density_is_taken_over_bit_for_bit(
    quick_config: Configure, sparse_run: Path
) -> None:
    saved = load_checkpoint(sparse_run / "checkpoints" / "step_00000006")
    block = saved.plain["config"]["sparsity"]["block_size"]
    for precision in ("fp32", "bf16"):
        config = quick_config(
            from_(sparse_run),
            "sparsity.density=0.25",
            f"sparsity.block_size={block}",
            f"train.precision={precision}",
            "seed=9",
        )
        held = model_tensors(begun(config))
        for name, tensor in saved.tensors["model"].items():
            assert held[name].equal(tensor.to(held[name].dtype)), name


def test_a_sparse_folder_is_the_same_source_as_its_run(
    quick_config: Configure, sparse_run: Path, tmp_path: Path
) -> None:
    trained = open_trained(sparse_run)
    write_sparse(trained, tmp_path)
    trained.tokenizer.save(tmp_path)
    block = f"sparsity.block_size={trained.config.sparsity.block_size}"
    for density in (0.125, 0.25, 0.5):
        settings = (f"sparsity.density={density}", block)
        by_run, by_folder = (
            model_tensors(begun(quick_config(from_(folder), *settings))) for folder in (sparse_run, tmp_path)
        )
        assert all(tensor.equal(by_folder[name]) for name, tensor in by_run.items())
    with pytest.raises(ConfigError, match=r"; write model.layers=2"):
        begun(quick_config(from_(tmp_path), "model.layers=1"))
    with pytest.raises(ConfigError, match=r"write model.intermediate_size=128"):
        begun(quick_config(from_(tmp_path), "model.intermediate_size=96"))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.index"]
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"up_proj.weight is not there"):
        begun(quick_config(from_(tmp_path)))
    (tmp_path / "sparse.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"model.init_from: .* can't be used: "):
        begun(quick_config(from_(tmp_path)))


def test_a_sparser_or_denser_run_prunes_or_adds_zeros(quick_config: Configure, sparse_run: Path) -> None:
    trained = open_trained(sparse_run)
    block = f"sparsity.block_size={trained.config.sparsity.block_size}"
    source = sparse_layers(trained.model)
    sparser = sparse_layers(begun(quick_config(from_(sparse_run), "sparsity.density=0.125", block)))
    denser = sparse_layers(begun(quick_config(from_(sparse_run), "sparsity.density=0.5", block)))
    for name, layer in source.items():
        had, fewer, more = (set(part[name].index.tolist()) for part in (source, sparser, denser))
        assert fewer < had < more
        assert denser[name].to_dense().equal(layer.to_dense())
        assert 2 * len(fewer) == len(had)
    assert logits(begun(quick_config(from_(sparse_run), "method=dense"))).allclose(logits(trained.model), atol=1e-6)


def test_the_first_loss_is_far_below_that_of_random_weights(
    quick_config: Configure, dense_run: Path, tmp_path: Path
) -> None:
    settings = ("sparsity.density=0.5", "train.steps=2")
    printed = train(quick_config(from_(dense_run), *settings), tmp_path / "pruned")
    train(quick_config(*settings, f"data.tokenizer.file='{dense_run}/tokenizer.json'"), tmp_path / "random")
    first = {
        name: next(e["loss"] for e in read_events(tmp_path / name / "metrics.jsonl") if e["event"] == "eval")
        for name in ("pruned", "random")
    }
    assert first["pruned"] < first["random"] - 1
    assert f"weights     begin as those of {dense_run}; optimizer, schedules and data begin anew" in printed
    assert f"tokenizer   {dense_run}/tokenizer.json" in printed
    [header] = [e for e in read_events(tmp_path / "pruned" / "metrics.jsonl") if e["event"] == "run"]
    assert header["init_from"] == str(dense_run)
    steps = [e["step"] for e in read_events(tmp_path / "pruned" / "metrics.jsonl") if e["event"] == "train"]
    assert steps == [1, 2]


def test_a_run_goes_on_when_its_source_is_gone(quick_config: Configure, dense_run: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(dense_run, source)
    train(quick_config(from_(source), "train.steps=3"), tmp_path / "run")
    shutil.rmtree(source)
    printed = train(quick_config(from_(source), "train.steps=6"), tmp_path / "run")
    assert "resumed     at step 3" in printed
    assert "begin as those of" not in printed
    assert open_trained(tmp_path / "run").step == 6
    with pytest.raises(CheckpointError, match=r"was trained with model.init_from=.*source, now model.init_from=null"):
        run_training(quick_config("train.steps=7"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"source does not exist"):
        run_training(quick_config(from_(source)), tmp_path / "another")


def test_it_is_part_of_what_a_run_is(quick_config: Configure) -> None:
    assert len({run_identity(quick_config(*more)) for more in ([], [from_(Path("a"))], [from_(Path("b"))])}) == 3


def test_a_plan_reads_its_vocabulary_and_no_weights(quick_config: Configure, hf_folder: Path, tmp_path: Path) -> None:
    shutil.copy(hf_folder / "tokenizer.json", tmp_path)
    config = quick_config(from_(tmp_path), "sparsity.density=0.25", "data.tokenizer.vocab_size=9999")
    vocabulary = planned_vocabulary(config)
    assert vocabulary.vocab_size == TextTokenizer.from_file(hf_folder).vocab_size
    build_sparse_model(config, vocabulary, torch.device("meta"))
    gone = quick_config(from_(tmp_path / "nowhere"), "data.tokenizer.vocab_size=9999")
    assert planned_vocabulary(gone).vocab_size == 9999


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden_size=32"], r"\(\d+, 64\) there and \(\d+, 32\) here; write model.hidden_size=64$"),
        (["model.layers=1"], r"model.layers.1.* is there, and the model has no such tensor; write model.layers=2$"),
        (["model.heads=4"], r"num_attention_heads is 2, the model's is 4, .*; write model.heads=2 model.kv_heads=2$"),
        (["model.tie_embeddings=true"], r"; write model.tie_embeddings=false$"),
        (["model.family=gpt2"], r"transformer.wte.weight is not there .*; write model.family=llama"),
    ],
)
@pytest.mark.parametrize("kind", ["run", "hf"])
def test_what_to_write_for_another_shape(
    kind: str, overrides: list[str], message: str, quick_config: Configure, dense_run: Path, hf_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        begun(quick_config(from_(dense_run if kind == "run" else hf_folder), *overrides))


def test_an_architecture_of_its_own_is_asked_for_by_its_config_file(
    quick_config: Configure, hf_folder: Path, tmp_path: Path
) -> None:
    vocab_size = TextTokenizer.from_file(hf_folder).vocab_size
    config = llama(vocab_size, 64, rms_norm_eps=1e-3, max_position_embeddings=512)
    source = AutoModelForCausalLM.from_config(config).eval()
    source.save_pretrained(tmp_path)
    shutil.copy(hf_folder / "tokenizer.json", tmp_path)
    by_file = f"model.config_file={tmp_path}/config.json"
    with pytest.raises(ConfigError, match=rf"its rms_norm_eps is 0.001, .*; write model=auto {re.escape(by_file)}"):
        begun(quick_config(from_(tmp_path), "method=dense"))
    plain = ["model.hidden_size=512", "model.intermediate_size=1376", "model.layers=8", "model.heads=8"]
    auto = quick_config(from_(tmp_path), "model.family=auto", by_file, *plain, "method=dense")
    assert logits(begun(auto)).equal(logits(source))
    other = llama(vocab_size, 32)
    other.save_pretrained(tmp_path / "other")
    wrong = f"model.config_file={tmp_path}/other/config.json"
    with pytest.raises(ConfigError, match=rf"64\) there and \(\d+, 32\) here; write model=auto {re.escape(by_file)}"):
        begun(quick_config(from_(tmp_path), "model.family=auto", wrong, *plain, "method=dense"))


def test_weights_that_are_codes_are_refused(quick_config: Configure, hf_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(hf_folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ConfigError, match="config.json has a quantization_config, so that the numbers beside it are"):
        begun(quick_config(from_(tmp_path)))


def test_a_table_of_positions_of_another_length(quick_config: Configure, hf_folder: Path, tmp_path: Path) -> None:
    vocab_size = TextTokenizer.from_file(hf_folder).vocab_size
    source = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=vocab_size, n_embd=64, n_layer=2, n_head=2, n_inner=128)
    )
    source.save_pretrained(tmp_path)
    shutil.copy(hf_folder / "tokenizer.json", tmp_path)
    begun(quick_config(from_(tmp_path), *GPT2))
    with pytest.raises(ConfigError, match=r"wpe.weight is \(1024, 64\) there and \(1500, 64\) here; .*write data.seq"):
        begun(quick_config(from_(tmp_path), *GPT2, "data.sequence_tokens=1500"))


def test_a_run_whose_config_file_is_gone_and_damage(quick_config: Configure, hf_folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "config.json"
    shutil.copy(hf_folder / "config.json", copied)
    plain = ["model.hidden_size=512", "model.intermediate_size=1376", "model.layers=8", "model.heads=8"]
    by_file = ["model.family=auto", f"model.config_file={copied}", *plain]
    train(quick_config(*by_file, "sparsity.density=0.25", "train.steps=1"), tmp_path / "run")
    copied.unlink()
    begun(quick_config(from_(tmp_path / "run"), "sparsity.density=0.25"))
    with pytest.raises(ConfigError, match=r"sites of .*mlp.gate_proj are not those of a layer of 96x64 .*; write"):
        begun(quick_config(from_(tmp_path / "run"), "model.intermediate_size=96"))
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"step_00000001: model.safetensors has 4 bytes.*or give another") as told:
        begun(quick_config(from_(tmp_path / "run")))
    assert told.value.exit_status == 1


def test_a_folder_that_lacks_tensors_is_to_blame_itself(
    quick_config: Configure, hf_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(hf_folder, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"model.norm.weight is not there .* so it is the folder that is not as it"):
        begun(quick_config(from_(tmp_path / "hf")))
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config.json can't be read"):
        begun(quick_config(from_(tmp_path / "hf")))


def test_another_tokenizer_is_warned_of(
    quick_config: Configure, hf_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (hf_folder / "tokenizer.json").read_text(encoding="utf-8")
    other = tmp_path / "tokenizer.json"
    other.write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'), encoding="utf-8")
    named = f"data.tokenizer.file='{other}'"
    with caplog.at_level(logging.WARNING):
        train(quick_config(from_(hf_folder), "train.steps=1"), tmp_path / "own")
        assert "another one than" not in caplog.text
        train(quick_config(from_(hf_folder), named, "train.steps=1"), tmp_path / "run")
    assert f"another one than {hf_folder}/tokenizer.json" in caplog.text
    assert beginning(quick_config(from_(hf_folder), named))[1] == f"tokenizer   {other}"
