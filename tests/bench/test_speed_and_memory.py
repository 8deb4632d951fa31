"""The benchmarks of time and memory on models whose figures mean nothing: what they write, and their bars."""

import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smet_train.bench import memory, speed
from smet_train.bench.settings import MemoryBench, SpeedBench
from smet_train.config.compose import compose
from smet_train.errors import SmetError
from tests import forked

pytestmark = pytest.mark.slow

TINY = ["+debug=quick", "topology.interval=100", "data.tokenizer.vocab_size=300"]


def test_speed_times_layers_steps_optimizer_and_update(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "_SHAPES", ((24, 40),))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    bench = SpeedBench(out=str(tmp_path), backends=["csr", "block:64"], densities=[0.1, 0.5], tokens=20, rounds=2)
    with pytest.raises(SmetError, match="holds 1 to 1 active blocks"):
        speed.run_speed(lambda more: compose([*TINY, *more]), bench, "smet-bench speed")
    bench.backends = ["csr", "block:4"]
    arms = {
        "csr 0.05": (["sparsity.backend=csr"], 1.7),
        "block 64 0.1": (["sparsity.backend=block", "sparsity.block_size=4"], 2.2),
        "densify 0.1": (["sparsity.density=0.1"], 0.9),
    }
    monkeypatch.setattr(speed, "_STEP_ARMS", arms)
    speed.run_speed(lambda more: compose([*TINY, *more]), bench, "smet-bench speed")
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(row["backend"], row["block"], row["density"], row["precision"]) for row in result["layers"]] == [
        (backend, block, density, precision)
        for precision in ("fp32", "bf16")
        for backend, block in (("csr", 1), ("block", 4))
        for density in (0.1, 0.5)
    ]
    assert all(row["speed_over_dense"] == row["dense_ms"] / row["ms"] > 0 for row in result["layers"])
    assert set(result["steps"]["seconds"]) == {"dense", *arms}
    assert result["steps"]["tokens"] == 2 * 32
    names = [bar["name"] for bar in result["bars"]]
    assert names[0] == "layer: csr, block 1, fp32, density 0.1: speed over dense"
    assert [name.partition(":")[0] for name in names[1:]] == [
        *["step"] * 3, "optimizer at density 0.1 over dense fused AdamW", "topology update over a step at density 0.1"
    ]  # fmt: skip
    assert (tmp_path / "speed.png").exists()


def test_a_precision_without_products_of_its_own_is_timed_only_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_SHAPES", ((24, 40),))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    def timed(precisions: list[str]) -> set[str]:
        bench = SpeedBench(
            out=str(tmp_path), backends=["block:4"], densities=[0.5], precisions=precisions, tokens=4, rounds=1,
            whole_steps=False,
        )  # fmt: skip
        speed.run_speed(lambda more: compose([*TINY, *more]), bench, "smet-bench speed")
        return {row["precision"] for row in json.loads((tmp_path / "result.json").read_text())["layers"]}

    assert timed(["fp32", "bf16"]) == {"fp32"}
    assert "bf16 is left out: this processor has no AVX-512" in " ".join(capsys.readouterr().out.split())
    assert timed(["bf16"]) == {"bf16"}


def test_a_bar_takes_the_shape_where_it_is_furthest_from_holding() -> None:
    def row(value: float, **facts: Any) -> dict[str, Any]:
        return {"backend": "csr", "block": 1, "precision": "fp32", "density": 0.1, "speed_over_dense": value, **facts}

    [bar] = speed.layer_bars([row(2.5), row(1.9), row(9.0, density=0.2), row(0.1, precision="bf16")])
    assert (bar.value, bar.bar, bar.holds) == (1.9, 2.0, False)


def test_nothing_to_time_is_a_mistake(tmp_path: Path) -> None:
    bench = SpeedBench(out=str(tmp_path), backends=[], tokens=4, rounds=1, whole_steps=False)
    with pytest.raises(SmetError, match="leave nothing to time"):
        speed.run_speed(lambda more: compose([*TINY, *more]), bench, "smet-bench speed")


def test_memory_compares_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=forked.run))
    for name in ("ours, blocks of 64", "ours, dense"):
        monkeypatch.delitem(memory._ARMS, name)
    bench = MemoryBench(out=str(tmp_path), steps=2, rounds=1)
    memory.run_memory([*TINY, "sparsity.backend=csr"], bench, "smet-bench memory")
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["arms"]) == list(memory._ARMS)
    assert result["arms"]["transformers"]["memory_ratio"] == 1
    assert all(facts["peak_bytes"] > 0 and facts["tokens_per_s"] > 0 for facts in result["arms"].values())
    assert len(result["bars"]) == 9
    with pytest.raises(SmetError, match="arm transformers failed: model is one of"):
        memory.run_memory(["model=no_such_model"], bench, "smet-bench memory")


@pytest.mark.process
@pytest.mark.parametrize("arm", ["transformers", "ours, activation checkpointing, freed memory released"])
def test_an_arm_is_measured_in_an_interpreter_of_its_own(arm: str) -> None:
    """So that its peak is its own, and malloc has begun afresh."""
    facts = memory._in_a_process(arm, [*TINY, *memory._ARMS[arm]], 2)
    assert 0 < facts["peak_bytes"] < 2**30
    assert facts["tokens_per_s"] > 0
