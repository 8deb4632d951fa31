"""Numbers that go wrong: which steps are passed over, and when a run goes back to its last good checkpoint.

A step whose loss or gradient is not finite is never taken: its batch is passed over and the next one tried. After
``max_bad_steps`` of them in a row something else than a batch is wrong, so the run starts again from its newest
checkpoint, with the data that come next; after ``max_rollbacks`` of those it ends.
"""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from torch import Tensor

from smet_train.sparse.finite import is_finite

_RECENT_STEPS = 50
_FEWEST_STEPS = 10  # a median of fewer says little


class RollBack(Exception):
    """The run must start again from its newest checkpoint, its data from ``position`` on, with ``guard``'s counts."""

    def __init__(self, position: dict[str, Any], guard: dict[str, Any]) -> None:
        super().__init__("the run goes back to its newest checkpoint")
        self.position = position
        self.guard = guard


class StepGuard:
    """Judges steps by their loss and gradient norm, and counts.

    Args:
        max_bad_steps: bad steps in a row that are passed over.
        max_rollbacks: times that the run goes back to a checkpoint.
        max_loss_rise: nats above the median of the last 50 losses from which a loss counts as bad; None for any.

    Attributes:
        passed_over: bad steps so far, over the whole run.
        rollbacks: how often the run has gone back.
    """

    def __init__(self, *, max_bad_steps: int, max_rollbacks: int, max_loss_rise: float | None) -> None:
        self.max_bad_steps = max_bad_steps
        self.max_rollbacks = max_rollbacks
        self.max_loss_rise = max_loss_rise
        self.passed_over = 0
        self.rollbacks = 0
        self._in_a_row = 0
        self._recent: list[float] = []

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step, or None. A step without fault is taken to be made."""
        what = self._what(loss, grad_norm)
        if what is None:
            self._in_a_row = 0
            self._recent = [*self._recent, loss][-_RECENT_STEPS:]
        else:
            self.passed_over += 1
            self._in_a_row += 1
        return what

    def _what(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm}"
        if self.max_loss_rise is None or len(self._recent) < _FEWEST_STEPS:
            return None
        usual = median(self._recent)
        if loss > usual + self.max_loss_rise:
            return f"the loss is {loss:.4g}, more than train.max_loss_rise={self.max_loss_rise:g} above {usual:.4g}"
        return None

    @property
    def exhausted(self) -> bool:
        """Whether there were more bad steps in a row than are passed over."""
        return self._in_a_row > self.max_bad_steps

    def go_back(self) -> None:
        """Count that the run goes back to a checkpoint; the bad steps in a row begin anew."""
        self.rollbacks += 1
        self._in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """Counts and recent losses in plain values."""
        return {
            "passed_over": self.passed_over,
            "rollbacks": self.rollbacks,
            "in_a_row": self._in_a_row,
            "recent": self._recent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the counts and losses of :meth:`state_dict`."""
        self.passed_over, self.rollbacks = int(state["passed_over"]), int(state["rollbacks"])
        self._in_a_row = int(state.get("in_a_row", 0))  # older checkpoints were never written between bad steps
        self._recent = [float(loss) for loss in state["recent"]]


def first_not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The name of the first floating-point tensor that holds a NaN or an infinity, or None."""
    for part, held in tensors.items():
        for name, tensor in held.items():
            if tensor.is_floating_point() and not is_finite(tensor):
                return f"{part}: {name}"
    return None
