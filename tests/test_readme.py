"""What the README shows works as it stands there; ``test_docs.py`` has its commands and links."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smet_train.config.locate import group_options

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_trains() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 16))
    losses = []

    def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        losses.append((model(batch) - batch).square().mean())
        return losses[-1]

    names: dict[str, Any] = {"model": model, "batches": torch.randn(300, 4, 16), "loss_of": loss_of}
    exec(example, names)
    training = names["training"]
    assert all(layer.layout.density == pytest.approx(0.1, abs=0.002) for layer in training.layers.values())
    assert training.steps == 300
    assert training.topology.state_dict()["last_step"] == 300
    assert torch.stack(losses[-50:]).mean() < torch.stack(losses[:50]).mean()


def test_every_experiment_and_method_is_named() -> None:
    for name in set(group_options("experiment")) - {"tutorial"}:  # that is docs/tutorial.md's
        assert re.sub(r"^llama_\w+?_density(?=0\.)", "", name) in README
    for name in group_options("method"):
        assert f"| `{name}` |" in README


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200
