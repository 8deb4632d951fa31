"""What the README shows works as it stands there; ``test_docs.py`` has its commands and links."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smet_train.config.locate import group_options

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_trains() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    mlp = nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
    model = nn.ModuleDict({"block": nn.ModuleDict({"mlp": mlp})})
    names: dict[str, Any] = {"model": model}
    exec(example, names)
    before = names["layers"]["block.mlp.up"].index.clone()
    for step in range(1, 101):
        x = torch.randn(4, 16)
        (mlp["down"](torch.relu(mlp["up"](x))) - x).square().mean().backward()
        names["optimizer"].step()
        names["optimizer"].zero_grad()
        if names["topology"].due(step):
            names["topology"].step(step)
    assert names["layers"].keys() == {"block.mlp.up", "block.mlp.down"}
    assert not torch.equal(names["layers"]["block.mlp.up"].index, before)


def test_every_experiment_and_method_is_named() -> None:
    for name in set(group_options("experiment")) - {"tutorial"}:  # that is docs/tutorial.md's
        assert re.sub(r"^llama_\w+?_density(?=0\.)", "", name) in README
    for name in group_options("method"):
        assert f"| `{name}` |" in README


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200
