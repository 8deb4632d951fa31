"""Events in columns are the events of the file, in a part of the memory."""

import json
import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from smet_train.report.events import Events
from smet_train.report.runs import read_run
from smet_train.tracking.jsonl import to_line

MIXED = [
    {"event": "eval", "step": 0, "loss": 2.5, "note": "text", "list": [1, 2]},
    {"event": "eval", "step": 100, "loss": "nan", "large": 2**60 + 1},
    {"event": "eval", "step": 200, "loss": 3, "flag": True, "none": None},
]


def test_they_come_back_as_they_were_written() -> None:
    events = Events(MIXED)
    assert list(events) == MIXED
    assert (events[-1], events[1:]) == (MIXED[2], MIXED[1:])
    assert isinstance(events[0]["step"], int)
    with pytest.raises(IndexError):
        events[3]


def test_a_field_is_an_array_of_numbers() -> None:
    events = Events(MIXED)
    np.testing.assert_equal(events.numbers("loss"), [2.5, math.nan, 3.0])
    np.testing.assert_equal(events.numbers("large"), [math.nan, float(2**60 + 1), math.nan])
    np.testing.assert_equal(events.numbers("note"), [math.nan] * 3)
    np.testing.assert_equal(events.numbers("unknown"), [math.nan] * 3)
    np.testing.assert_equal(Events().numbers("unknown"), [])
    np.testing.assert_equal(Events([{"loss": "-inf"}, {"loss": 10**400}]).numbers("loss"), [-math.inf, math.nan])


def test_a_grid_is_an_array_and_what_is_none_stays() -> None:
    events = Events([{"grid": [[0.5, 1], [2, 3]]}, {"grid": [[1], [2, 3]]}, {"grid": [["a"]]}])
    np.testing.assert_equal(events[0]["grid"], np.array([[0.5, 1.0], [2.0, 3.0]]))
    assert [events[1], events[2]] == [{"grid": [[1], [2, 3]]}, {"grid": [["a"]]}]


def test_a_run_takes_less_memory_than_its_metrics_take_room(tmp_path: Path) -> None:
    """Nine times as much as dictionaries. Of 10,000 steps; grids too."""
    draw = random.Random(1)
    with (tmp_path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, 10_001):
            numbers = {key: draw.random() for key in ("loss", "lr", "grad_norm", "tokens_per_s", "time_s")}
            file.write(to_line({"event": "train", "step": step, **numbers, "tokens": 4096 * step}))
            if step % 100 == 0:
                grid = [[round(draw.random(), 4) for _ in range(32)] for _ in range(32)]
                file.write(to_line({"event": "topology_map", "step": step, "layer": "a", "grid": grid}))
    size_bytes = (tmp_path / "metrics.jsonl").stat().st_size
    tracemalloc.start()
    run = read_run(tmp_path)
    held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < peak_bytes < size_bytes
    assert run.column("train", "step").tolist() == list(range(1, 10_001))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.last("topology_map")["grid"].tolist() == last["grid"]
