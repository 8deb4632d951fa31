"""Watches the loss around topology updates: in the training losses, and on a fixed probe batch when there is one."""

from collections.abc import Callable, Mapping
from typing import Any

from smet_train.tracking.spikes import SpikeMeter


class SpikeWatch:
    """The spike meters of a run.

    A training loss is noisy, because every step has another batch; the probe batch shows the weights' part alone. Both
    are taken before an optimizer step, so the loss of step s + 1 is the first one after an update that follows step s.

    Args:
        train: meter of the training losses.
        probe: meter of the probe losses, or None.
        probe_loss: the model's present loss on the probe batch; called only inside an open window.
    """

    def __init__(
        self, train: SpikeMeter, probe: SpikeMeter | None = None, probe_loss: Callable[[], float] | None = None
    ) -> None:
        self.train = train
        self.probe = probe
        self.probe_loss = probe_loss

    def before_step(self, step: int) -> list[dict[str, Any]]:
        """Take the probe loss of step ``step`` if a window is open that lacks it; returns the spike events that this
        closes. A step that is tried again, with other batches, has it already: no weight has changed since."""
        if self.probe is None or self.probe_loss is None or not self.probe.lacks(step):
            return []
        return self.probe.observe(step, self.probe_loss())

    def after_step(self, step: int, loss: float) -> list[dict[str, Any]]:
        """Take the training loss of step ``step``; returns the spike events that this closes."""
        return self.train.observe(step, loss)

    def probe_baseline(self) -> float | None:
        """The probe loss right before a topology update, or None without a probe batch."""
        return None if self.probe_loss is None else self.probe_loss()

    def topology_moved(self, step: int, probe_baseline: float | None) -> list[dict[str, Any]]:
        """A topology update followed step ``step``; returns the events of windows that it cut short."""
        events = self.train.update(step)
        if self.probe is not None:
            events += self.probe.update(step, baseline=probe_baseline)
        return events

    def finish(self) -> list[dict[str, Any]]:
        """The events of windows still open at the end of the run."""
        return self.train.finish() + ([] if self.probe is None else self.probe.finish())

    def state_dict(self) -> dict[str, Any]:
        """The open windows of both meters in plain values."""
        return {"train": self.train.state_dict(), "probe": None if self.probe is None else self.probe.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, same_probe: bool) -> None:
        """Continue open windows; a probe that the checkpoint does not know, or that is not the ``same_probe`` batch,
        starts with the next update."""
        self.train.load_state_dict(state["train"])
        if self.probe is not None and state["probe"] is not None and same_probe:
            self.probe.load_state_dict(state["probe"])
