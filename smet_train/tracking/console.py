"""The display of a run: a progress bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable
from typing import Any

import psutil
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from smet_train.showing import shown, visible
from smet_train.tracking.streams import lasting, unchanged

_MEMORY_EVERY_STEPS = 10
_GIB = 1024**3
_WIDTH_OF_FILES = 120
# Columns from which loss, speed and memory fit beside the step and the time that is left.
_WIDTHS_OF_FACTS = (48, 68, 80)


class _Console(Console):
    """Shows texts as they may leave the program; what moves the cursor is rich's own."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich's; a URL is looked at before it is wrapped."""
        super().print(*(shown(item) if isinstance(item, str) else item for item in objects), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def open_console() -> Console:
    """Standard output, as wide as the terminal, or wide enough for the tables where it is a file or a pipe.

    It may end first: rich would end the process. Text is shown as it is: paths and names may hold what rich takes for
    its markup, ``[b]``, or for an emoji, ``:x:``.
    """
    console = _Console(file=lasting(unchanged(sys.stdout)), highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    return console


def duration(seconds: float) -> str:
    """h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def event_line(event: dict[str, Any]) -> str | None:
    """One readable line for an event that deserves one; None for the rest."""
    kind, step = event["event"], event.get("step")
    if kind == "eval":
        return f"step {step}  validation loss {event['loss']:.4f}  perplexity {event['perplexity']:.2f}"
    if kind == "topology":
        moved = f"dropped {event['dropped']:,}, grew {event['grown']:,} values"
        return f"step {step}  topology: {moved} (drop fraction {event['drop_fraction']:.3f})"
    if kind == "spike":
        recovery = event["recovery_steps"]
        recovered = "not recovered" if recovery is None else f"recovered in {recovery} steps"
        return (
            f"step {step}  spike ({event['source']} loss): {event['spike']:+.4f} over {event['baseline']:.4f}, "
            f"{recovered} (window {event['horizon_steps']} steps)"
        )
    if kind == "checkpoint":
        return f"step {step}  checkpoint {event['path']}"
    return None


class ConsoleSink:
    """Step, loss, tokens/s, ETA and memory.

    Args:
        total_steps: steps of the whole run.
        start_step: the step that this process starts from.
        log_interval: steps between two plain lines, where there is no terminal.
    """

    def __init__(self, console: Console, *, total_steps: int, start_step: int, log_interval: int) -> None:
        self._console = console
        self._total_steps = total_steps
        self._start_step = start_step
        self._log_interval = log_interval
        self._process = psutil.Process()
        self._memory_gib = self._process.memory_info().rss / _GIB
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[facts]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task("train", total=total_steps, completed=start_step, facts="")
            self._progress.start()

    def emit(self, event: dict[str, Any]) -> None:
        """Show an event: a step on the bar or every ``log_interval`` steps, others by :func:`event_line`."""
        if event["event"] == "train":
            self._train(event)
        elif (line := event_line(event)) is not None:
            self._console.print(line, soft_wrap=True)

    def _train(self, event: dict[str, Any]) -> None:
        step, speed = event["step"], event["tokens_per_s"]
        if step % _MEMORY_EVERY_STEPS == 0:
            self._memory_gib = self._process.memory_info().rss / _GIB
        if self._progress is not None:
            facts = [f"loss {event['loss']:.3f}", f"{speed:,.0f} tokens/s", f"{self._memory_gib:.2f} GiB"]
            n_facts = sum(self._console.width >= width for width in _WIDTHS_OF_FACTS)
            self._progress.update(self._task, completed=step, facts="  ".join(facts[:n_facts]))
        elif step % self._log_interval == 0 or step in (self._start_step + 1, self._total_steps):
            tokens_left = event["tokens"] / step * (self._total_steps - step)
            eta = duration(tokens_left / speed) if speed > 0 else "?"
            self._console.print(
                f"step {step}/{self._total_steps}  loss {event['loss']:.4f}  lr {event['lr']:.2e}  "
                f"grad norm {event['grad_norm']:.2f}  {speed:,.0f} tokens/s  ETA {eta}  {self._memory_gib:.2f} GiB",
                soft_wrap=True,
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
