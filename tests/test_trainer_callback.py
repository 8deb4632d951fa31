"""Under transformers.Trainer: its steps, its scheduler, its checkpoints."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from smet_train import SparseTraining, SparseTrainingCallback
from smet_train.errors import ConfigError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "transformers_trainer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(trainer: Any, training: SparseTraining) -> dict[str, Tensor]:
    held = dict(trainer.model.state_dict())
    for number, parameter in enumerate(trainer.model.parameters()):
        state = training.optimizer.state[parameter]
        held.update({f"{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)})
    return held


@pytest.mark.parametrize("arguments", [{}, {"bf16": True, "gradient_accumulation_steps": 2}], ids=["fp32", "bf16"])
def test_a_run_goes_on_exactly_from_trainers_checkpoint(
    arguments: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, whole_training = example().build(str(tmp_path), **arguments)
    whole.train()
    assert [record.getMessage() for record in caplog.records].count(
        "Trainer's checkpoints hold sparse layers, which from_pretrained does not read: they are for going on by "
        "resume_from_checkpoint; training.dense_copy().save_pretrained(FOLDER) writes a model for others"
    ) == 1
    resumed, training = example().build(str(tmp_path), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    assert training.steps == whole_training.steps == 60
    ours, theirs = tensors(resumed, training), tensors(whole, whole_training)
    assert ours.keys() == theirs.keys()
    assert any(key.endswith(".age") and bool(value.any()) for key, value in ours.items())
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def trainer(tmp_path: Path, training: SparseTraining, model: torch.nn.Module, **changes: Any) -> Trainer:
    arguments = TrainingArguments(str(tmp_path), max_steps=4, use_cpu=True, report_to="none")
    given = {"optimizers": (training.optimizer, None), "callbacks": [SparseTrainingCallback(training)], **changes}
    return Trainer(model, arguments, train_dataset=example().documents(), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "write total_steps=4"),
        ({"optimizers": (None, None)}, r"write Trainer\(optimizers=\(training.optimizer, None\)"),
    ],
)
def test_another_optimizer_or_length_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    built, training = example().build(str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, training, built.model, **changes).train()
