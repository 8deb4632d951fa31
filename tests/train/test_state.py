"""What a checkpoint must fit: the model's tensors by name, shape and dtype, and every part of the state."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from smet_train.build import build_run
from smet_train.build_data import build_data
from smet_train.config.schema import Config
from smet_train.errors import CheckpointError, LayoutError
from smet_train.job import run_training
from smet_train.sparse import sparsify
from smet_train.train.checkpoint import load_checkpoint
from smet_train.train.signals import StopRequest
from smet_train.train.snapshot import Snapshot
from smet_train.train.state import model_tensors, restore, restore_model


def model() -> nn.ModuleDict:
    layers = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    sparsify(layers, ["a"], density=0.5, seed=1, backend="densify")
    return layers


def test_tied_tensors_are_saved_once_and_come_back() -> None:
    tied = model()
    tied["c"] = nn.Linear(6, 6, bias=False)
    tied["c"].register_parameter("weight", tied["b"].get_parameter("weight"))
    tensors = {name: tensor.clone() for name, tensor in model_tensors(tied).items()}
    assert sorted(tensors) == ["a.packed_index", "a.values", "b.weight"]
    with torch.no_grad():
        tied["b"].get_parameter("weight").zero_()
    restore_model(tied, tensors)
    assert torch.equal(tied["c"].get_parameter("weight"), tensors["b.weight"])


def test_tensors_of_another_model_are_refused() -> None:
    saved = {name: tensor.clone() for name, tensor in model_tensors(model()).items()}
    with pytest.raises(CheckpointError, match=r"b\.weight is on one side only"):
        restore_model(model(), {name: tensor for name, tensor in saved.items() if name != "b.weight"})
    with pytest.raises(
        CheckpointError, match=r"b\.weight is \(3,\) of torch\.float32 there, \(6, 6\) of torch\.float32"
    ):
        restore_model(model(), {**saved, "b.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"of torch\.bfloat16 there"):
        restore_model(model(), {**saved, "b.weight": saved["b.weight"].bfloat16()})
    with pytest.raises(LayoutError):
        restore_model(model(), {**saved, "a.packed_index": ~saved["a.packed_index"]})


def test_a_checkpoint_that_lacks_a_part_is_refused(quick_config: Callable[..., Config], tmp_path: Path) -> None:
    config = quick_config("train.steps=2")
    run_training(config, tmp_path, Console(quiet=True))
    snapshot = load_checkpoint(tmp_path / "checkpoints" / "step_00000002")
    run = build_run(config, tmp_path, build_data(config, tmp_path / "tokenizer.json"), StopRequest())
    plain = {key: value for key, value in snapshot.plain.items() if key != "topology"}
    with pytest.raises(
        CheckpointError, match=r"the checkpoint holds what smet-train never writes \(topology is missing\); resume"
    ):
        restore(run, Snapshot(snapshot.tensors, plain), same_folder=True)
    restore(run, snapshot, same_folder=True)
    assert (run.state.step, run.fresh) == (2, False)
    run.batches.close()
    run.tracker.close()
