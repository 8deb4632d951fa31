import pytest

from smet_train.topology import TopologySchedule


def schedule(shape: str = "cosine", stop_at: float = 1.0, interval: int = 10) -> TopologySchedule:
    return TopologySchedule(interval, 0.2, 0.005, shape, stop_at, 100)


def test_due_after_every_interval_but_not_at_the_end() -> None:
    assert [step for step in range(0, 131) if schedule().due(step)] == list(range(10, 100, 10))


def test_stop_at_ends_the_updates_early() -> None:
    assert [step for step in range(0, 131) if schedule(stop_at=0.5).due(step)] == [10, 20, 30, 40]


def test_an_interval_longer_than_the_run_never_moves() -> None:
    assert not any(schedule(interval=200).due(step) for step in range(1000))


@pytest.mark.parametrize(
    ("shape", "table"),
    [
        ("cosine", {0: 0.2, 50: 0.1025, 100: 0.005, 150: 0.005}),
        ("linear", {0: 0.2, 50: 0.1025, 75: 0.05375, 100: 0.005, 150: 0.005}),
        ("constant", {0: 0.2, 50: 0.2, 100: 0.2}),
    ],
)
def test_drop_fractions_by_hand(shape: str, table: dict[int, float]) -> None:
    assert {step: schedule(shape).fraction(step) for step in table} == pytest.approx(table)
