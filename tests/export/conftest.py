"""Runs of a few steps of every kind of model that is exported, made once each."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smet_train.config.schema import Config
from smet_train.job import run_training
from smet_train.trained import Trained, open_trained

RUNS = {
    "llama_gqa": ["model.heads=4", "model.kv_heads=2", "sparsity.density=0.25"],
    "llama_tied": ["model.tie_embeddings=true", "sparsity.density=0.25"],
    "gpt2": ["model.family=gpt2", "sparsity.density=0.25"],
    "gpt2_tied_blocks": [
        "model.family=gpt2", "model.tie_embeddings=true", "sparsity.density=0.25", "sparsity.block_size=16",
    ],
    "blocks_over_the_edge": ["sparsity.density=0.25", "sparsity.block_size=24"],
    "bf16": ["train.precision=bf16", "sparsity.density=0.25"],
    "gmp": ["method=gmp", "sparsity.density=0.25"],
    "sparse_output_layer": ["sparsity.include=['*_proj',lm_head]", "sparsity.density=0.25"],
    "dense": ["method=dense"],
}  # fmt: skip
SPARSE_RUNS = [name for name in RUNS if name != "dense"]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "formats.md"


@pytest.fixture(scope="session")
def run_of(quick_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a kind of run, by its name in ``RUNS``."""
    folders: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("export") / name
            run_training(quick_config(*RUNS[name]), folders[name])
        return folders[name]

    return run


@pytest.fixture
def trained_as(run_of: Callable[[str], Path]) -> Callable[[str], Trained]:
    """The model of a kind of run, computed by itself with the sites as they are."""
    return lambda name: open_trained(run_of(name), backend="densify")


def documented(function: str) -> Callable[..., Any]:
    """The function of that name in docs/formats.md, as it stands there."""
    (block,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL) if function in block
    )
    names: dict[str, Any] = {}
    exec(block, names)
    return names[function]
