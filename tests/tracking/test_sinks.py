import io
import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from smet_train.errors import SmetError
from smet_train.tracking.console import ConsoleSink, duration, open_console
from smet_train.tracking.jsonl import JsonlSink, events_until, read_events, to_line
from smet_train.tracking.names import FIELDS, metrics, prefix, prefixes
from smet_train.tracking.resources import memory_use
from smet_train.tracking.sinks import Tracker
from smet_train.tracking.throughput import Throughput
from tests.tracking.full_file import FullFile

STEP = {"event": "train", "step": 10, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "tokens": 100, "tokens_per_s": 50.0}


def test_lines_are_strict_json() -> None:
    line = to_line({"event": "train", "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": None})
    assert json.loads(line, parse_constant=pytest.fail) == {
        "event": "train", "a": "nan", "b": "inf", "c": "-inf", "d": 1.5, "e": None,
    }  # fmt: skip
    assert [float(json.loads(line)[key]) for key in "bc"] == [math.inf, -math.inf]


def test_a_torn_last_line_is_left_out_and_any_other_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b"}\n{"eve')
    assert [event["event"] for event in read_events(path)] == ["a", "b"]
    path.write_text('{"event": "a"}\n[1]\n{"event": "b"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_events(path)


def test_a_line_that_is_being_written_is_the_last_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "a"}\n{"eve')
    parse = json.loads

    def as_it_is_written(line: bytes) -> object:
        try:
            return parse(line)
        except ValueError:
            with path.open("a") as file:
                file.write('nt": "b"}\n{"event": "c"}\n')
            raise

    monkeypatch.setattr("smet_train.tracking.jsonl.json.loads", as_it_is_written)
    assert [event["event"] for event in read_events(path)] == ["a"]
    monkeypatch.undo()
    assert [event["event"] for event in read_events(path)] == ["a", "b", "c"]


def test_the_file_is_cut_back_to_a_position(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.emit({"event": "a"})
    position = sink.position()
    sink.emit({"event": "b"})
    assert len(read_events(path)) == 2  # at once, without closing
    sink.close()
    again = JsonlSink(path)
    again.truncate(position)
    again.emit({"event": "c"})
    assert [event["event"] for event in read_events(path)] == ["a", "c"]
    again.truncate(10**6)
    assert "earlier events are missing" in caplog.text
    again.close()


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 30))
def test_a_patient_file_is_whole_as_soon_as_there_is_room(rooms: list[int], first_bytes: int) -> None:
    """Whatever room there is before each event; its position is that of a file that always had room."""
    with TemporaryDirectory() as folder:
        patient, easy = JsonlSink(Path(folder, "a"), patient=True), JsonlSink(Path(folder, "b"))
        disk = FullFile(patient._file, first_bytes)
        patient._file = disk  # type: ignore[assignment]
        for number, room_bytes in enumerate(rooms):
            disk.room_bytes += room_bytes
            for sink in (patient, easy):
                sink.emit({"event": "train", "step": number})
            assert easy.path.read_bytes().startswith(patient.path.read_bytes())
            assert patient.position() == easy.position()
        disk.room_bytes = 10**6
        patient.close()
        easy.close()
        assert patient.path.read_bytes() == easy.path.read_bytes()


def test_a_patient_file_tells_each_shortage_once_and_what_is_lost_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", patient=True)
    disk = FullFile(sink._file, 0)
    sink._file = disk  # type: ignore[assignment]
    for step in range(3):
        sink.emit({"event": "train", "step": step})
    disk.room_bytes = 10**6
    sink.emit({"event": "train", "step": 3})
    assert [event["step"] for event in read_events(sink.path)] == [0, 1, 2, 3]
    disk.room_bytes = 5
    sink.emit({"event": "train", "step": 4})
    sink.truncate(sink.path.stat().st_size - 5)
    sink.close()
    told = [record.getMessage().removeprefix(f"{sink.path} ") for record in caplog.records]
    shortage = (
        "can't be written: [Errno 28] No space left on device; its lines are kept in memory until there is room "
        "(checkpoint.on_error=warn: training goes on)"
    )
    again = "is written again, nothing is missing from it"
    assert told == [shortage, again, shortage, again]
    assert [event["step"] for event in read_events(sink.path)] == [0, 1, 2, 3]

    caplog.clear()
    last = JsonlSink(tmp_path / "metrics.jsonl", patient=True)
    last._file = FullFile(last._file, 5)  # type: ignore[assignment]
    last.emit({"event": "train", "step": 4})
    last.close()
    assert caplog.messages[-1].endswith("metrics.jsonl lacks its last 25 bytes: there was no room for them")


def test_a_metrics_file_that_can_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(SmetError, match=r"metrics.jsonl can't be written: .*Is a directory.*; make room and start"):
        JsonlSink(tmp_path / "metrics.jsonl", patient=True)


class Broken:
    calls = 0

    def emit(self, _: dict[str, Any]) -> None:
        self.calls += 1
        raise OSError("gone")

    def close(self) -> None:
        raise OSError("gone")


def test_a_display_that_fails_is_dropped_and_the_metrics_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, broken = Tracker(JsonlSink(tmp_path / "m.jsonl")), Broken()
    tracker.add(broken)
    for _ in range(3):
        tracker.emit(STEP)
    assert broken.calls == 1
    assert caplog.text.count("Broken failed and is left out") == 1
    tracker.add(broken)
    tracker.close()
    assert "Broken failed to close" in caplog.text
    assert len(read_events(tmp_path / "m.jsonl")) == 3


def test_a_metrics_file_that_fails_is_an_error(tmp_path: Path) -> None:
    tracker = Tracker(JsonlSink(tmp_path / "m.jsonl"))
    tracker.close()
    with pytest.raises(ValueError, match="closed file"):
        tracker.emit(STEP)


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out, width=200), total_steps=100, start_step=0, log_interval=10)
    for step in (1, 2, 10, 99, 100):
        sink.emit({**STEP, "step": step, "tokens": 10 * step})
    sink.emit({"event": "eval", "step": 100, "loss": 2.0, "perplexity": 7.389})
    sink.emit({"event": "topology", "step": 100, "dropped": 1000, "grown": 1000, "drop_fraction": 0.2})
    sink.emit({"event": "checkpoint", "step": 100, "path": "checkpoints/x"})
    spike = {"event": "spike", "step": 50, "source": "probe", "spike": 0.5, "baseline": 2.0, "horizon_steps": 30}
    sink.emit({**spike, "recovery_steps": None})
    sink.emit({**spike, "recovery_steps": 7})
    sink.emit({"event": "memory", "step": 100})
    sink.close()
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/100", "step 10/100", "step 100/100", "step 100", "step 100", "step 100", "step 50", "step 50",
    ]  # fmt: skip
    assert "loss 2.5000  lr 1.00e-03  grad norm 0.50  50 tokens/s  ETA 0:00:18" in lines[1]
    assert "validation loss 2.0000  perplexity 7.39" in lines[3]
    assert "dropped 1,000, grew 1,000 values (drop fraction 0.200)" in lines[4]
    assert "spike (probe loss): +0.5000 over 2.0000, not recovered (window 30 steps)" in lines[6]
    assert "recovered in 7 steps" in lines[7]


def test_a_speed_of_zero_has_no_eta() -> None:
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out, width=200), total_steps=100, start_step=0, log_interval=10)
    sink.emit({**STEP, "tokens_per_s": 0.0})
    assert "ETA ?" in out.getvalue()


def test_a_progress_bar_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True, color_system=None)
    sink = ConsoleSink(console, total_steps=20, start_step=0, log_interval=10)
    sink.emit(STEP)
    sink.emit({"event": "checkpoint", "step": 10, "path": "checkpoints/x"})
    sink.close()
    assert "loss 2.500" in out.getvalue()
    assert "10/20" in out.getvalue()
    assert "50 tokens/s" in out.getvalue()
    assert "checkpoints/x" in out.getvalue()


@pytest.mark.parametrize(("width", "facts"), [(40, 0), (50, 1), (70, 2), (80, 3)])
def test_a_narrow_terminal_shows_step_and_time_first(width: int, facts: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    sink = ConsoleSink(console, total_steps=20_000, start_step=0, log_interval=10)
    sink.emit({**STEP, "step": 12_345, "tokens_per_s": 88_608.0})
    sink.close()
    shown = next(line for line in out.getvalue().split("\r") if "12345/20000" in line)
    assert "ETA" in shown
    assert [text in shown for text in ("loss 2.500", "88,608 tokens/s", " GiB")] == [n < facts for n in range(3)]
    assert "…" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_file_is_wide_enough_for_the_tables() -> None:
    assert open_console().width == 120


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console, text = open_console(), "a[/b]:x:[red]"
    table = Table(title=text)
    table.add_column(f"column {text}")
    table.add_row(f"cell {text}")
    console.print(table)
    ConsoleSink(console, total_steps=1, start_step=0, log_interval=1).emit(
        {"event": "checkpoint", "step": 1, "path": text}
    )
    assert capsys.readouterr().out.count(text) == 4


def test_throughput_counts_tokens_over_unpaused_time() -> None:
    now = [0.0]
    speed = Throughput(window_steps=2, clock=lambda: now[0])
    now[0] = 1.0
    assert speed.step(100) == 100.0
    now[0] = 2.0
    with speed.paused():
        now[0] = 50.0
    now[0] = 51.0
    assert speed.step(300) == pytest.approx(400 / 3)
    now[0] = 52.0
    assert speed.step(100) == pytest.approx(400 / 3)  # the first step has left the window
    assert Throughput(clock=lambda: 0.0).step(5) == 0.0


def test_memory_is_in_bytes() -> None:
    use = memory_use(torch.device("cpu"))
    assert set(use) == set(FIELDS["memory"])
    assert 50 * 2**20 < use["rss_bytes"] <= use["peak_rss_bytes"] < 2**40
    assert use["device_bytes"] == use["peak_device_bytes"] == 0


def test_the_peak_is_in_bytes_where_the_kernel_has_no_status_file(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = type("Usage", (), {"ru_maxrss": 2**36})
    monkeypatch.setattr("resource.getrusage", lambda _: peak)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    for platform, expected in (("linux", 2**46), ("darwin", 2**36)):
        monkeypatch.setattr(sys, "platform", platform)
        assert memory_use(torch.device("cpu"))["peak_rss_bytes"] == expected


def test_events_are_read_up_to_a_position(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    assert list(events_until(path, sink.position())) == []
    sink.emit(STEP)
    sink.emit({"event": "eval", "step": 10, "loss": math.nan})
    position = sink.position()
    events = events_until(path, position)
    sink.emit(STEP)
    sink.close()
    assert list(events) == read_events(path)[:2]


def test_metrics_have_the_name_of_their_event_and_source() -> None:
    assert metrics(STEP) == {f"train/{key}": value for key, value in STEP.items() if key not in ("event", "step")}
    spike = {"event": "spike", "step": 3, "source": "probe", "peak": "inf", "baseline": "nan", "recovery_steps": None}
    values = metrics(spike)
    assert values["spike/probe_peak"] == math.inf
    assert math.isnan(values["spike/probe_baseline"])
    assert len(values) == 2
    assert metrics({"event": "end", "step": 3}) == {}
    assert {prefix(spike), prefix(STEP)} < set(prefixes())
    assert len(prefixes()) == len(FIELDS) + 1
