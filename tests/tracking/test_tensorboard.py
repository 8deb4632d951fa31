import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smet_train.errors import ConfigError
from smet_train.tracking import tensorboard_sink
from smet_train.tracking.tensorboard_sink import TensorboardSink, require_tensorboard
from tests.tracking.read_back import tensorboard_points


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"event": "train", "step": number, "loss": loss, "tokens": 10 * number, "time_s": 1000.0 + number}


def test_events_are_read_back_at_their_steps_and_times(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorboardSink(tmp_path / "tensorboard")
    spike = {"event": "spike", "step": 1, "source": "probe", "peak": "inf", "spike": 0.25, "recovery_steps": None}
    for event in (step(1, 0.1), step(2, math.nan), spike, {"event": "run", "step": 1}, {"event": "end", "step": 2}):
        sink.emit(event)
    sink.close()
    assert sink.note == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    points = tensorboard_points(tmp_path / "tensorboard")
    assert set(points) == {"train/loss", "train/tokens", "spike/probe_peak", "spike/probe_spike"}
    assert points["train/tokens"] == [(1, 10), (2, 20)]
    assert points["train/loss"][0] == (1, np.float32(0.1))
    assert math.isnan(points["train/loss"][1][1])
    assert points["spike/probe_peak"] == [(1, math.inf)]
    times = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("spike/probe_spike")
    assert times[0].wall_time == 1002.0


def test_a_later_start_replaces_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    for steps in ((1, 2), (1, 2, 3), (1, 2, 3, 4)):
        sink = TensorboardSink(tmp_path)
        for number in steps:
            sink.emit(step(number, float(len(steps))))
        sink.close()
        (tmp_path / "notes.txt").touch()
    assert tensorboard_points(tmp_path)["train/loss"] == [(number, 4.0) for number in (1, 2, 3, 4)]
    assert (tmp_path / "notes.txt").exists()
    assert len(list(tmp_path.glob("events*"))) == 2


def test_a_tensorboard_that_is_watching_forgets_what_it_had_read(tmp_path: Path) -> None:
    """Both by the reader that TensorBoard's server uses and by the one that is for everybody."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServersAccumulator

    watching, server = EventAccumulator(str(tmp_path)), ServersAccumulator(str(tmp_path))
    for loss, steps in ((1.0, (1, 2, 3, 4)), (1.5, (1, 2, 3)), (2.0, (1, 2))):
        sink = TensorboardSink(tmp_path)
        for number in steps:
            sink.emit(step(number, loss))
        sink.close()
        watching.Reload()
        server.Reload()
    assert [point.step for point in server.Tensors("train/loss")] == [1, 2]
    assert [(point.step, point.value) for point in watching.Scalars("train/loss")] == [(1, 2.0), (2, 2.0)]


def test_a_missing_library_is_told_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tensorboard()
    found: dict[str, ModuleSpec | None] = {"tensorboard": None}
    monkeypatch.setattr(tensorboard_sink, "find_spec", found.get)
    with pytest.raises(ConfigError, match=r"pip install 'smet-train\[tensorboard\]'"):
        require_tensorboard()


def test_the_command_says_so_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from smet_train.cli.train import main

    monkeypatch.setattr(tensorboard_sink, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["smet-train", *quick, f"hydra.run.dir={tmp_path}", "tracking.tensorboard=true"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "the library tensorboard is not installed" in capsys.readouterr().err
    assert not (tmp_path / "metrics.jsonl").exists()
