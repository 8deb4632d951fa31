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
        ("wsd", {0: 0.005, 1: 0.044, 5: 0.2, 50: 0.2, 80: 0.2, 90: 0.1025, 100: 0.005, 150: 0.005}),
    ],
)
def test_drop_fractions_by_hand(shape: str, table: dict[int, float]) -> None:
    assert {step: schedule(shape).fraction(step) for step in table} == pytest.approx(table)
    half = schedule(shape, stop_at=0.5)  # the fraction has fallen by when the topology comes to rest
    assert {step / 2: half.fraction(step / 2) for step in table} == pytest.approx(  # type: ignore[arg-type]
        {step / 2: fraction for step, fraction in table.items()}
    )


def test_updates_and_the_largest_of_them() -> None:
    assert (schedule().updates, schedule(stop_at=0.5).updates, schedule(interval=100).updates) == (9, 4, 0)
    assert schedule(interval=99).updates == 1
    assert schedule().largest_fraction() == schedule().fraction(10)
    assert schedule("wsd").largest_fraction() == pytest.approx(0.2)
    assert schedule(interval=200).largest_fraction() == 0
