"""Plain transformers loads the dense folder, and it is the model that was trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smet_train.build import build_data
from smet_train.export.write import export
from smet_train.sparse import SparseLinear
from smet_train.sparse.ledger import sparse_layers
from smet_train.train.evaluate import mean_loss, perplexity
from smet_train.trained import Trained
from tests.export.conftest import RUNS

TrainedAs = Callable[[str], Trained]


@pytest.mark.parametrize("name", RUNS)
def test_logits_and_perplexity_are_those_of_the_trained_model(
    name: str, trained_as: TrainedAs, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = trained_as(name)
    export(run_of(name), "hf", tmp_path / "out")
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values()), found
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert type(model) is type(trained.model)
    data = build_data(trained.config, trained.run_folder / "tokenizer.json")
    data.close()
    windows, precision = data.validation, trained.config.train.precision.name
    with torch.no_grad():
        ours, theirs = (each(input_ids=windows[:, :-1]).logits.float() for each in (trained.model, model))
    assert (ours - theirs).abs().max() <= 1e-4
    own, exported = (perplexity(mean_loss(each, windows, 2, precision)) for each in (trained.model, model))
    assert f"{own:.4g}" == f"{exported:.4g}"
    if name != "bf16":  # the run itself wrote it down, with the backend and the micro-batches it had
        recorded = [json.loads(line) for line in (trained.run_folder / "metrics.jsonl").read_text().splitlines()]
        last = [event for event in recorded if event["event"] == "eval"][-1]
        assert f"{last['perplexity']:.4g}" == f"{exported:.4g}"


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_the_trained_ones_bit_for_bit(
    name: str, trained_as: TrainedAs, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = trained_as(name)
    export(run_of(name), "hf", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    layers = sparse_layers(trained.model)
    for layer_name, layer in layers.items():
        module, dense = model.get_submodule(layer_name), layer.to_dense()
        assert torch.equal(module.weight.t() if type(module).__name__ == "Conv1D" else module.weight, dense)
        assert module.weight.dtype == layer.values.dtype
    rest = {key: value for key, value in trained.model.state_dict().items() if key.rpartition(".")[0] not in layers}
    written = model.state_dict()
    assert rest.keys() <= written.keys()
    assert all(torch.equal(written[key], value) for key, value in rest.items())
    tied = trained.config.model.tie_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_the_folder_generates_and_its_tokenizer_is_the_runs(
    trained_as: TrainedAs, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = trained_as("llama_gqa")
    export(run_of("llama_gqa"), "hf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the model reads a token"
    assert tokenizer(text)["input_ids"] == trained.tokenizer.encode(text)
    assert tokenizer.eos_token_id == trained.tokenizer.eos_id
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == trained.tokenizer.eos_id
    prompt = tokenizer(text, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert written.shape == (1, prompt["input_ids"].shape[1] + 5)
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # none is for its owner alone
