"""Spike measurement against hand-written tables, and its state against an uninterrupted measurement."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smet_train.tracking.spikes import SpikeMeter


def meter(horizon: int = 4, baseline: int = 2) -> SpikeMeter:
    return SpikeMeter(source="train", horizon_steps=horizon, baseline_steps=baseline, beta2=0.999)


def run(losses: list[float], updates: list[int], **settings: int) -> list[dict[str, Any]]:
    """Losses of steps 1, 2, …, with updates after the given steps."""
    measured, events = meter(**settings), []
    for step, loss in enumerate(losses, start=1):
        events += measured.observe(step, loss)
        if step in updates:
            events += measured.update(step)
    return events + measured.finish()


TABLE = [
    # losses, steps with an update after them, (step, baseline, peak, peak_step, recovery_steps, horizon_steps)
    ([3.0, 1.0, 2.5, 4.0, 2.0, 1.5, 9.0], [2], (2, 2.0, 4.0, 4, 3, 4)),  # 2.0 at step 5, three steps after step 2
    ([2.0, 2.0, 2.5, 3.0, 2.8, 2.4, 0.0], [2], (2, 2.0, 3.0, 4, None, 4)),  # recovers outside the window
    ([2.0, 2.0, 1.9, 1.8, 1.7, 1.6, 9.0], [2], (2, 2.0, 1.9, 3, 1, 4)),  # no spike: negative, at once below
    ([2.0, 2.0, 1.0, 5.0, 2.0, 3.0], [2], (2, 2.0, 5.0, 4, 3, 4)),  # a dip before the peak is no recovery
    ([5.0, 5.0, 2.0, 2.0, 6.0], [4], (4, 2.0, 6.0, 5, None, 1)),  # cut short by the end; baseline of the last two
    ([2.0, 2.0, math.nan, 1.0, 1.0, 1.0], [2], (2, 2.0, math.inf, 3, 2, 4)),  # NaN counts as infinite
]


@pytest.mark.parametrize(("losses", "updates", "expected"), TABLE)
def test_the_table(losses: list[float], updates: list[int], expected: tuple[Any, ...]) -> None:
    (event,) = run(losses, updates)
    step, baseline, peak, peak_step, recovery_steps, horizon_steps = expected
    assert event == {
        "event": "spike",
        "source": "train",
        "step": step,
        "baseline": baseline,
        "peak": peak,
        "spike": peak - baseline,
        "peak_step": peak_step,
        "recovery_steps": recovery_steps,
        "horizon_steps": horizon_steps,
        "beta2": 0.999,
    }


def test_an_update_inside_a_window_closes_it() -> None:
    events = run([1.0, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0], [2, 4])
    assert [(e["step"], e["peak"], e["horizon_steps"]) for e in events] == [(2, 3.0, 2), (4, 2.0, 4)]


def test_an_update_before_any_loss_has_no_baseline() -> None:
    measured = meter()
    assert measured.update(0) == []
    assert not measured.open
    assert measured.update(0, baseline=1.0) == []
    assert measured.open


@given(
    losses=st.lists(st.floats(0, 20), min_size=1, max_size=40),
    updates=st.sets(st.integers(1, 40)),
    cut=st.integers(0, 40),
)
def test_a_measurement_taken_up_again_equals_the_uninterrupted_one(
    losses: list[float], updates: set[int], cut: int
) -> None:
    events: list[dict[str, Any]] = []
    measured = meter()
    for step, loss in enumerate(losses, start=1):
        events += measured.observe(step, loss)
        if step in updates:
            events += measured.update(step)
        if step == cut:
            state = json.loads(json.dumps(measured.state_dict()))
            measured = meter()
            measured.load_state_dict(state)
    assert events + measured.finish() == run(losses, sorted(updates))
