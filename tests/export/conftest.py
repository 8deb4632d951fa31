"""Runs of a few steps of every kind of model that is exported, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smet_train.config.schema import Config
from smet_train.job import run_training

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
    "dense": ["method=dense"],
}  # fmt: skip
SPARSE_RUNS = [name for name in RUNS if name != "dense"]


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
