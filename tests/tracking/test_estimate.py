"""How long a run will take is said once, from the steps after the first."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from smet_train.tracking.estimate import TimeEstimate, rate_text, time_text


def lines(*, start: int, total: int, seconds_at: Iterator[float]) -> list[str]:
    """What is printed over a start of up to ten steps, the clock being read from ``seconds_at``."""
    file = io.StringIO()
    sink = TimeEstimate(
        Console(file=file, width=40), total_steps=total, start_step=start, clock=lambda: next(seconds_at)
    )
    for step in range(start + 1, min(total, start + 10) + 1):
        sink.emit({"event": "topology", "step": step})
        sink.emit({"event": "train", "step": step})
    sink.close()
    return file.getvalue().splitlines()


def test_the_first_step_is_left_out_and_the_line_is_said_once() -> None:
    assert lines(start=0, total=5000, seconds_at=iter([100.0, 100.42])) == [
        "time        about 12 min for 5,000 steps at 7.1 steps/s (measured over steps 2 to 4)"
    ]


def test_a_resumed_run_counts_the_steps_that_are_left() -> None:
    assert lines(start=1000, total=1100, seconds_at=iter([0.0, 6.0])) == [
        "time        about 3.3 min for 100 steps at 2 s a step (measured over steps 1,002 to 1,004)"
    ]


@pytest.mark.parametrize(("start", "total"), [(0, 19), (90, 100), (0, 1)])
def test_a_short_run_says_nothing(start: int, total: int) -> None:
    assert lines(start=start, total=total, seconds_at=iter([])) == []


def test_a_clock_that_stands_still_says_nothing() -> None:
    assert lines(start=0, total=100, seconds_at=iter([5.0, 5.0])) == []


def test_times_and_rates_have_units_that_fit() -> None:
    seconds = [0.2, 90, 150, 1_800, 9_000, 90_000, 200_000, 2_000_000]
    told = ["1 s", "90 s", "2.5 min", "30 min", "2.5 h", "25 h", "2.3 days", "23 days"]
    assert [time_text(s) for s in seconds] == told
    assert [rate_text(s) for s in (0.002, 0.14, 1.0, 14.25)] == [
        "500 steps/s",
        "7.1 steps/s",
        "1 s a step",
        "14.2 s a step",
    ]
