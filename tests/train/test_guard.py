import math

import pytest
import torch

from smet_train.train.guard import StepGuard, first_not_finite


def guard(max_bad_steps: int = 2, max_loss_rise: float | None = None) -> StepGuard:
    return StepGuard(max_bad_steps=max_bad_steps, max_rollbacks=1, max_loss_rise=max_loss_rise)


@pytest.mark.parametrize(
    ("loss", "norm", "fault"),
    [
        (1.0, 2.0, None),
        (math.nan, 2.0, "the loss is nan"),
        (math.inf, 2.0, "the loss is inf"),
        (-math.inf, 2.0, "the loss is -inf"),
        (1.0, math.nan, "the gradient's norm is nan"),
        (1.0, math.inf, "the gradient's norm is inf"),
    ],
)
def test_a_step_is_at_fault_unless_its_numbers_are_finite(loss: float, norm: float, fault: str | None) -> None:
    assert guard().fault(loss, norm) == fault


def test_only_bad_steps_in_a_row_exhaust_it() -> None:
    judge = guard(max_bad_steps=2)
    seen = []
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan, math.nan):
        judge.fault(loss, 1.0)
        seen.append(judge.exhausted)
    assert seen == [False, False, False, False, False, True]
    assert judge.passed_over == 5


def test_bad_steps_stay_in_a_row_over_a_save_but_not_over_going_back() -> None:
    first, saved, gone_back = guard(max_bad_steps=1), guard(max_bad_steps=1), guard(max_bad_steps=1)
    first.fault(math.nan, 1.0)
    saved.load_state_dict(first.state_dict())
    first.go_back()
    gone_back.load_state_dict(first.state_dict())
    for judge, exhausted in ((saved, True), (gone_back, False)):
        judge.fault(math.nan, 1.0)
        assert judge.exhausted == exhausted


def test_a_rise_is_measured_from_the_median_of_at_least_ten_losses() -> None:
    judge = guard(max_loss_rise=0.5)
    assert [judge.fault(loss, 1.0) for loss in (2.0, 9.0, *[2.0] * 8)] == [None] * 10
    assert judge.fault(2.5, 1.0) is None
    assert judge.fault(2.51, 1.0) == "the loss is 2.51, more than train.max_loss_rise=0.5 above 2"
    assert judge.fault(2.49, 1.0) is None


def test_its_state_is_all_it_needs() -> None:
    first, second = guard(max_loss_rise=0.5), guard(max_loss_rise=0.5)
    for _ in range(60):
        first.fault(3.0, 1.0)
    first.fault(math.nan, 1.0)
    first.go_back()
    second.load_state_dict(first.state_dict())
    assert (second.passed_over, second.rollbacks) == (1, 1)
    assert len(second.state_dict()["recent"]) == 50
    assert second.fault(3.6, 1.0) == first.fault(3.6, 1.0) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(bad: float, dtype: torch.dtype) -> None:
    tensors = {
        "model": {"index": torch.arange(3), "empty": torch.empty(0), "values": torch.zeros(5, 7, dtype=dtype)},
        "optimizer": {"exp_avg": torch.full((9,), torch.finfo(dtype).max, dtype=dtype)},
    }
    assert first_not_finite(tensors) is None
    for part, name in (("model", "values"), ("optimizer", "exp_avg")):
        flat = tensors[part][name].flatten()
        for place in (0, len(flat) // 2, len(flat) - 1):
            before, flat_view = flat[place].clone(), tensors[part][name].view(-1)
            flat_view[place] = bad
            assert first_not_finite(tensors) == f"{part}: {name}"
            flat_view[place] = before
