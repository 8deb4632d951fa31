"""Several processes train what one process trains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smet_train.config.schema import Config
from smet_train.tracking.jsonl import read_events
from tests.distributed.ranks import FOUR, LONG, LONG_STEPS, apart, in_double_precision, losses, train, weights

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def alone(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(quick_config(*LONG, *FOUR), folder, 1)
    return folder


@pytest.mark.parametrize("size", [2, 4])
def test_in_single_precision_to_rounding(quick_config: QuickConfig, tmp_path: Path, alone: Path, size: int) -> None:
    train(quick_config(*LONG, *FOUR), tmp_path, size)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-6)
    assert losses(tmp_path, "eval") == pytest.approx(losses(alone, "eval"), rel=1e-6)
    assert apart(weights(tmp_path, LONG_STEPS), weights(alone, LONG_STEPS)) < 3e-5


def test_in_double_precision_to_a_ten_billionth(quick_config: QuickConfig, tmp_path: Path) -> None:
    for size in (1, 2, 4):
        train(quick_config(*LONG, *FOUR), tmp_path / str(size), size, in_double_precision)
    moves = [event for event in read_events(tmp_path / "1" / "metrics.jsonl") if event["event"] == "topology"]
    assert sum(move["grown"] > 0 for move in moves) == 5
    for size in (2, 4):
        assert losses(tmp_path / str(size)) == pytest.approx(losses(tmp_path / "1"), abs=1e-10)
        assert apart(weights(tmp_path / str(size), LONG_STEPS), weights(tmp_path / "1", LONG_STEPS)) < 1e-10


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=smet_rigl",),
        ("method=smet_rigl", "topology.probe_steps=2", "topology.drop=magnitude_and_gradient"),
        ("method=gmp", "topology.interval=1"),
        ("method=dense",),
        ("model.family=gpt2", "model.tie_embeddings=true", "sparsity.block_size=16"),
        ("train.activation_checkpointing=true", "tracking.probe_windows=3", "train.precision=bf16_mixed"),
        ("optimizer.moments=fp8",),
    ],
    ids=lambda overrides: " ".join(overrides[:2]),
)
def test_every_kind_of_run(quick_config: QuickConfig, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = quick_config("train.micro_batch_size=1", *overrides)
    exact = config.train.precision.name == "fp32"
    hooks = [in_double_precision] if exact else []
    for size in (1, 2):
        train(config, tmp_path / str(size), size, *hooks)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=1e-10 if exact else 1e-2)
    assert losses(tmp_path / "2", "eval") == pytest.approx(losses(tmp_path / "1", "eval"), abs=1e-10 if exact else 1e-2)
    if exact and config.optimizer.moments.name != "fp8":
        assert apart(weights(tmp_path / "2", 6), weights(tmp_path / "1", 6)) < 1e-10


def test_the_same_twice_bit_for_bit(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("model.dropout=0.1", "model.family=gpt2")
    for folder in ("first", "second"):
        train(config, tmp_path / folder, 2)
    assert apart(weights(tmp_path / "first", 6), weights(tmp_path / "second", 6)) == 0
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
