"""Settings reach the parts that they configure."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from smet_train.build import build_optimizer, rates_line, remarks
from smet_train.build_data import build_data, build_shared_data
from smet_train.config.schema import Config
from smet_train.errors import LayoutError
from smet_train.optim import peak_rates
from smet_train.sparse_model import build_sparse_model, planned_vocabulary
from smet_train.train.processes import Processes


def test_embeddings_train_at_a_rate_of_their_own(quick_config: Callable[..., Config]) -> None:
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2))

    def scales(*overrides: str) -> dict[str, float]:
        groups = build_optimizer(quick_config("optimizer.lr=2e-3", *overrides), model, {}).param_groups
        return {group["role"]: group["lr_scale"] for group in groups}

    assert scales() == {"embedding": 1.0, "dense": 1.0, "no_decay": 1.0}
    assert scales("optimizer.embedding_lr=5e-4") == {"embedding": 0.25, "dense": 1.0, "no_decay": 1.0}


def test_processes_train_with_the_tokenizer_that_their_windows_were_packed_with(
    quick_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Whatever token it ends documents with: the position in the data is of that tokenizer."""
    own = build_data(quick_config(), None).tokenizer
    own.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(own.eos_token, "<stop>"))
    config = quick_config(f"data.tokenizer.file={tmp_path}")
    leading = cast(Processes, SimpleNamespace(size=2, rank=0, leads=True, told=lambda make: make()))
    with closing(build_shared_data(config, None, leading)) as data:
        assert data.tokenizer.eos_token == "<stop>"
        position = data.batches.state_dict()
    (tmp_path / "run").mkdir()
    data.tokenizer.save(tmp_path / "run")
    with closing(build_data(config, tmp_path / "run" / "tokenizer.json")) as again:
        again.batches.load_state_dict(position)


def test_what_a_run_should_know_before_it_starts(quick_config: Callable[..., Config]) -> None:
    assert remarks(quick_config("method=smet", "topology.interval=2")) == []
    assert remarks(quick_config("method=dense", "topology.interval=2", "sparsity.density=0.3")) == [
        "no effect   sparsity.density=0.3, topology.interval=2: every layer is dense"
    ]
    [never] = remarks(quick_config("method=smet", "topology.interval=6", "train.steps=6"))
    assert never.startswith("topology    never moves: the first update would be after step 6")
    [pruned] = remarks(quick_config("method=gmp", "topology.interval=2", "sparsity.density=0.3"))
    assert "needs more memory than dense training until the density has fallen towards 0.3" in pruned
    often = "topology.interval=2", "train.steps=1000"
    assert remarks(quick_config("method=smet", *often)) == [
        "ages        2 bytes a sparse value, which count 499 updates, as long as local steps matter; 1 byte is enough "
        "from topology.interval=63 on"
    ]
    assert remarks(quick_config("method=set", *often)) == []
    assert remarks(quick_config("method=smet", *often, "optimizer.betas=[0.9,0.95]")) == []


@pytest.mark.parametrize(
    ("overrides", "line", "peaks"),
    [
        (
            ["method=smet", "sparsity.density=0.25", "optimizer.lr=1e-3"],
            "peak rates  0.004 sparse layers (optimizer.lr / density), 0.001 embeddings and output layer, 0.001 norms "
            "and biases",
            {"sparse": [0.004], "embedding": [0.001], "no_decay": [0.001]},
        ),
        (
            ["method=set", "optimizer.lr=1e-3", "optimizer.embedding_lr=3e-3"],
            "peak rates  0.001 sparse layers, 0.003 embeddings and output layer, 0.001 norms and biases",
            {"sparse": [0.001], "embedding": [0.003], "no_decay": [0.001]},
        ),
        (
            ["method=dense", "optimizer.lr=5e-4"],
            "peak rates  0.0005 embeddings and output layer, 0.0005 dense matrices, 0.0005 norms and biases",
            {"embedding": [0.0005], "dense": [0.0005], "no_decay": [0.0005]},
        ),
        (
            [
                "optimizer.lr=1e-4", "optimizer.lr_density_rule=sqrt", "sparsity.density=0.25",
                "sparsity.densities=['*.q_proj=0.04']",
            ],
            "peak rates  0.0002 to 0.0005 sparse layers (optimizer.lr / sqrt(density)), 0.0001 embeddings and output "
            "layer, 0.0001 norms and biases",
            {"sparse": [0.0002, 0.0005], "embedding": [0.0001], "no_decay": [0.0001]},
        ),
    ],
)  # fmt: skip
def test_the_rates_that_each_kind_of_parameter_comes_to_are_told(
    quick_config: Callable[..., Config], overrides: list[str], line: str, peaks: dict[str, list[float]]
) -> None:
    config = quick_config(*overrides)
    model, densities = build_sparse_model(config, planned_vocabulary(config), torch.device("cpu"))
    optimizer = build_optimizer(config, model, densities)
    assert rates_line(config, optimizer) == line
    found = peak_rates(optimizer.param_groups, config.optimizer.lr)
    assert {role: pytest.approx(rates) for role, rates in peaks.items()} == found


def test_a_layer_that_would_be_pruned_away_is_named_before_the_run(quick_config: Callable[..., Config]) -> None:
    config = quick_config("method=gmp", "topology.interval=2", "sparsity.density=1e-5")
    with pytest.raises(
        LayoutError, match=r"layer model\.layers\.0\.self_attn\.q_proj at density 1e-05: a sparse layer"
    ):
        build_sparse_model(config, planned_vocabulary(config), torch.device("meta"))
