import pytest

from smet_train.optim import LrSchedule


def schedule(name: str, total: int = 100, warmup: float = 0.1) -> LrSchedule:
    return LrSchedule(name=name, total_steps=total, warmup_fraction=warmup, min_ratio=0.1, decay_fraction=0.2)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("cosine", {1: 0.1, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1, 130: 0.1}),
        ("linear", {1: 0.1, 10: 1.0, 55: 0.55, 100: 0.1, 130: 0.1}),
        ("constant", {1: 0.1, 10: 1.0, 55: 1.0, 100: 1.0, 130: 1.0}),
        ("wsd", {1: 0.1, 10: 1.0, 80: 1.0, 90: 0.55, 100: 0.1, 130: 0.1}),
    ],
)
def test_hand_written_tables(name: str, table: dict[int, float]) -> None:
    assert {step: schedule(name).factor(step) for step in table} == pytest.approx(table)


def test_without_warmup_the_first_step_is_full() -> None:
    assert schedule("constant", warmup=0.0).factor(1) == 1.0
    assert schedule("cosine", warmup=0.0).factor(1) > 0.99


def test_a_decay_longer_than_what_follows_the_warmup_starts_at_its_end() -> None:
    wsd = LrSchedule(name="wsd", total_steps=10, warmup_fraction=0.5, min_ratio=0.0, decay_fraction=1.0)
    assert [wsd.factor(s) for s in (5, 6, 10)] == pytest.approx([1.0, 0.8, 0.0])


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_run_of_one_step_has_a_factor(name: str, warmup: float) -> None:
    assert 0.1 <= schedule(name, total=1, warmup=warmup).factor(1) <= 1.0
