"""Run folders with made-up metrics: nothing is trained."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

Event = dict[str, Any]
INTERVAL = 50


def header(**facts: Any) -> Event:
    return {
        "event": "run", "method": "smet", "density": 0.1, "seed": 1, "beta2": 0.999, "parameters_active": 1000,
        "step_flops": 2_000_000, "layer_densities": {"layers.0.q_proj": 0.1, "layers.0.up_proj": 0.2}, **facts,
    }  # fmt: skip


def map_event(step: int) -> Event:
    grid = [[0.1, 0.2, 0.3], [0.3, 0.4, 0.5 + step / 1e6]]
    return {
        "event": "topology_map", "step": step, "layer": "layers.0.q_proj", "out_features": 2, "in_features": 3,
        "grid": grid,
    }  # fmt: skip


def loss_at(step: int) -> float:
    """Falls, and is half a nat higher right after an update."""
    return 8 / math.sqrt(step) + (0.5 if step > INTERVAL and step % INTERVAL == 1 else 0.0)


def made_up(steps: int, **facts: Any) -> list[Event]:
    """The events of a finished run with an update every 50 steps."""
    events = [header(**facts), map_event(0), {"event": "eval", "step": 0, "loss": 9.0, "perplexity": 8103.0}]
    for step in range(1, steps + 1):
        events.append(
            {
                "event": "train", "step": step, "loss": loss_at(step), "lr": 1e-3, "grad_norm": 1.5,
                "tokens": 100 * step, "tokens_per_s": 2000.0, "time_s": float(step),
            }
        )  # fmt: skip
        if step % INTERVAL == 0 and step < steps:
            events += _update(step)
    kinds = [{"kind": "values", "bytes": 2**20, "dense_bytes": 10 * 2**20}]
    return [
        *events,
        {"event": "eval", "step": steps, "loss": 4.5, "perplexity": 90.0},
        {"event": "memory", "step": steps, "peak_rss_bytes": 2**30, "kinds": kinds},
        {"event": "end", "step": steps, "reason": "finished"},
    ]


def _update(step: int) -> list[Event]:
    spike = {"event": "spike", "step": step, "baseline": 1.0, "recovery_steps": 2, "horizon_steps": 30}
    return [
        {
            "event": "topology", "step": step, "dropped": 5, "grown": 5, "density": 0.1, "drop_fraction": 0.1,
            "survived": 0.5, "mean_age_steps": step / 2, "ever_active": 0.1 + step / 1e5,
        },
        map_event(step),
        {**spike, "source": "train", "peak": 1.5, "spike": 0.5},
        {**spike, "source": "probe", "peak": 1.25, "spike": 0.25},
    ]  # fmt: skip


def write_run(folder: Path, events: Iterable[Event], settings: dict[str, Any] | None = None, torn: str = "") -> Path:
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines + torn, encoding="utf-8")
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run of 200 steps."""
    return write_run(tmp_path / "finished", made_up(200))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run folder of a name, with the made-up events of so many steps and other facts in its first event."""

    def make(name: str, steps: int = 120, settings: dict[str, Any] | None = None, **facts: Any) -> Path:
        return write_run(tmp_path / name, made_up(steps, **facts), settings)

    return make
