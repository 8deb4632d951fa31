"""What is sent: gradients of what exists, once an optimizer step, and next to nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smet_train.config.schema import Config
from smet_train.tracking.jsonl import read_events
from tests.distributed.ranks import train

QuickConfig = Callable[..., Config]


def sent(folder: Path) -> list[int]:
    return [event["sent_bytes"] for event in read_events(folder / "metrics.jsonl") if event["event"] == "train"]


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("density", [0.1, 0.25])
def test_sparse_layers_send_their_density_of_what_they_send_dense(
    quick_config: QuickConfig, tmp_path: Path, density: float, accumulated: int
) -> None:
    """Over dense training that also sends nothing while it accumulates; all that is sent beside gradients counts."""
    batch = (f"train.batch_size={2 * accumulated}", "train.micro_batch_size=1", "sparsity.allocation=uniform")
    large = ("model.hidden_size=128", "model.intermediate_size=256", "model.layers=2")
    folders = tmp_path / "sparse", tmp_path / "dense"
    for folder, method in zip(folders, (f"sparsity.density={density}", "method=dense"), strict=True):
        train(quick_config(*batch, *large, method), folder, 2)
    header = next(event for event in read_events(folders[0] / "metrics.jsonl") if event["event"] == "run")
    layers = 2 * (4 * 128 * 128 + 3 * 128 * 256)
    rest = 4 * (header["parameters_dense_equivalent"] - layers)
    for sparse, dense in zip(sent(folders[0]), sent(folders[1]), strict=True):
        assert (sparse - rest) / (4 * layers) <= density + 0.01
        assert dense >= rest + 4 * layers


def test_alone_nothing_is_sent(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(), tmp_path, 1)
    assert all("sent_bytes" not in event for event in read_events(tmp_path / "metrics.jsonl"))
