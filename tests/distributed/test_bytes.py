"""What is sent: gradients of what exists, once an optimizer step, and next to nothing else."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from smet_train.config.schema import Config
from smet_train.tracking.jsonl import read_events
from smet_train.train.shared_gradients import SharedGradients
from tests.distributed.ranks import end, patched, start, train

pytestmark = pytest.mark.slow

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
    assert len(sent(folders[0])) == 6
    for sparse, dense in zip(sent(folders[0]), sent(folders[1]), strict=True):
        assert (sparse - rest) / (4 * layers) <= density + 0.01
        assert dense >= rest + 4 * layers


def count_buckets(path: Path) -> None:
    """Write down how many bytes of gradients torch sends."""
    wrapped = SharedGradients._wrapped

    def average(_, bucket):  # type: ignore[no-untyped-def]  # torch refuses other types than its own
        with path.open("a") as file:
            file.write(f"{bucket.buffer().nbytes}\n")
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is the group of all processes

    def with_hook(loss: SharedGradients) -> Any:
        parallel = wrapped(loss)
        parallel.register_comm_hook(None, average)
        return parallel

    patched("smet_train.train.shared_gradients.SharedGradients._wrapped", with_hook)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_gradients_that_count_are_those_that_torch_sends(
    quick_config: QuickConfig, tmp_path: Path, accumulated: int
) -> None:
    config = quick_config(f"train.batch_size={2 * accumulated}", "train.micro_batch_size=1", "method=static")
    counted = tmp_path / "counted"
    assert end(start(config, tmp_path / "run", 2, partial(count_buckets, counted))) == [0, 0]
    header = next(event for event in read_events(tmp_path / "run" / "metrics.jsonl") if event["event"] == "run")
    gradients = 4 * header["parameters_active"]
    assert sum(map(int, counted.read_text().split())) == 2 * 6 * gradients  # of both
    assert len(sent(tmp_path / "run")) == 6
    assert all(gradients < step < 1.02 * gradients + 1000 * accumulated for step in sent(tmp_path / "run"))


def test_alone_nothing_is_sent(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(), tmp_path, 1)
    assert all("sent_bytes" not in event for event in read_events(tmp_path / "metrics.jsonl"))
