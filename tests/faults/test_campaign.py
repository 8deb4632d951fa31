"""The table of faults counts right: a campaign with one failure fails, and says which trial."""

import pytest

from tests.faults.conftest import Campaign


def test_a_failed_trial_fails_its_campaign() -> None:
    tally = Campaign("counting", every=False, unit="s")
    with pytest.raises(pytest.fail.Exception, match="nothing was tried"):
        tally.judge()
    for failure, cost in ((None, 1.0), ("lost", 3.0), (None, 2.0)):
        tally.note(failure, cost)
    assert tally.row() == {"name": "counting", "tried": 3, "passed": 2, "worst": 3.0, "unit": "s"}
    with pytest.raises(pytest.fail.Exception, match=r"counting: 1 of 3 failed:\ntrial 2: lost"):
        tally.judge()


def test_draws_are_the_same_each_time_and_differ_between_trials() -> None:
    first, again = ([draw.random() for draw in Campaign("draws", every=False).draws(3, 9)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert len(list(Campaign("draws", every=True).draws(3, 9))) == 9
