"""Events to TensorBoard, under the same names and steps as in wandb."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smet_train.errors import ConfigError
from smet_train.tracking.names import metrics


def require_tensorboard() -> None:
    """Raises ConfigError if TensorBoard's library is not installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.tensorboard=true, but the library tensorboard is not installed; write "
            "pip install 'smet-train[tensorboard]', or leave the setting out"
        )


class TensorboardSink:
    """Event files in ``folder``; the newest has the whole run, however often it went on.

    What the files of earlier starts hold is given again as history, up to the checkpoint that the run goes on from. So
    each file begins with word to forget what was read before it. All but the newest earlier one are removed: a
    TensorBoard that is reading that would not go on to the next file without it.
    """

    def __init__(self, folder: Path) -> None:
        self.note = f"tensorboard --logdir {folder}"
        for file in sorted(folder.glob("events.out.tfevents.*"))[:-1]:
            file.unlink()
        writer = import_module("torch.utils.tensorboard").SummaryWriter  # takes a second
        self._writer = writer(str(folder), purge_step=0)
        self._time_s: float | None = None

    def emit(self, event: dict[str, Any]) -> None:
        """Write the event's metrics at its step, at the time of the event or of the last one that had a time."""
        self._time_s = event.get("time_s", self._time_s)
        for name, value in metrics(event).items():
            self._writer.add_scalar(name, value, event["step"], walltime=self._time_s)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
