"""The closing summary of a run, from its metrics.jsonl alone."""

import logging
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from smet_train import opening
from smet_train.errors import SmetError
from smet_train.tracking.jsonl import each_event

log = logging.getLogger(__name__)

_LAST_STEPS = 10
_COMPARABLE_BYTES = 2**27  # below, a process has more in threads and compiled code than in the tensors of its model


def _readable(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from each_event(path)
    except ValueError as error:
        log.warning("the summary lacks what comes after it, and validation losses: %s", error)
        yield {"event": "damage"}


def run_summary(run_folder: Path) -> dict[str, Any]:
    """The facts of a run; a fact that the run has not produced is absent.

    Losses are in nats a token. ``train_loss`` is the mean of the last 10 steps, ``eval_loss`` the last validation loss,
    of step ``eval_step``, and ``first_eval_loss`` the first, if there are two. ``spikes`` has, for each source of
    losses, the number of measured updates and the mean and largest spike. Of each step no more than its speed is held.
    A damaged line is a warning; what follows it is left out, and validation losses are, for the last may follow it.
    """
    path = run_folder / "metrics.jsonl"
    speeds, losses = array("d"), deque[float](maxlen=_LAST_STEPS)
    evals: list[dict[str, Any]] = []
    spikes: dict[str, list[float]] = {"train": [], "probe": []}
    summary: dict[str, Any] = {"topology_updates": 0, "spikes": {}}
    for event in _readable(path) if path.is_file() else ():
        kind = event["event"]
        if kind == "train":
            summary["step"], summary["tokens"] = event["step"], event["tokens"]
            losses.append(float(event["loss"]))  # a text where it is not finite
            speeds.append(float(event["tokens_per_s"]))
        elif kind == "eval":
            evals = [*evals[:1], event]
        elif kind == "topology":
            summary["topology_updates"] += 1
        elif kind == "spike" and event["spike"] is not None:
            spikes[event["source"]].append(float(event["spike"]))
        elif kind == "run" and "method" not in summary:
            summary.update({key: event[key] for key in ("method", "density", "beta2")})
        elif kind == "memory":
            summary["memory"] = event
        elif kind == "end":
            summary["reason"] = event["reason"]
        elif kind == "damage":
            evals = []
    if speeds:
        summary["train_loss"] = fmean(losses)
        summary["tokens_per_s"] = median(speeds)
    if evals:
        summary["eval_loss"], summary["eval_step"] = float(evals[-1]["loss"]), evals[-1]["step"]
        summary["perplexity"] = float(evals[-1]["perplexity"])
    if len(evals) > 1:
        summary["first_eval_loss"] = float(evals[0]["loss"])
    for source, found in spikes.items():
        if found:
            summary["spikes"][source] = {"count": len(found), "mean": fmean(found), "largest": max(found)}
    return summary


def format_bytes(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _facts_table(summary: dict[str, Any]) -> Table:
    table = Table(title="summary", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    if "step" in summary:
        table.add_row("steps", f"{summary['step']:,} ({summary['tokens']:,} tokens)")
        table.add_row(f"training loss, last {_LAST_STEPS} steps", f"{summary['train_loss']:.4f}")
    if "eval_loss" in summary:
        table.add_row("validation loss", _eval_text(summary))
        table.add_row("validation perplexity", f"{summary['perplexity']:.2f}")
    table.add_row("topology updates", str(summary["topology_updates"]))
    for source, spike in summary["spikes"].items():
        table.add_row(
            f"loss spikes, {source}",
            f"mean {spike['mean']:+.4f}, largest {spike['largest']:+.4f} nats over {spike['count']} updates "
            f"(beta2 {summary.get('beta2')})",
        )
    if "tokens_per_s" in summary:
        table.add_row("speed, median", f"{summary['tokens_per_s']:,.0f} tokens/s")
    if "memory" in summary:
        table.add_row("peak memory", peak_text(summary["memory"]))
    return table


def _eval_text(summary: dict[str, Any]) -> str:
    """The last validation loss; at which step, if steps came after it, and by how much it fell, if there is another."""
    step = summary["eval_step"]
    facts = [f"at step {step:,}"] if step != summary.get("step", step) else []
    if "first_eval_loss" in summary:
        facts.append(f"fell by {summary['first_eval_loss'] - summary['eval_loss']:.4f} nats")
    return f"{summary['eval_loss']:.4f}" + (f" ({', '.join(facts)})" if facts else "")


def peak_text(memory: dict[str, Any]) -> str:
    """The peak of the process, or of the GPU where there is one, beside the predicted peak of its tensors."""
    text = f"{format_bytes(memory['peak_rss_bytes'])} in the process"
    if "planned_peak_bytes" not in memory:
        return text
    planned = memory["planned_peak_bytes"]
    above = memory["peak_rss_bytes"] - memory["start_rss_bytes"]
    text += f", {format_bytes(above)} of it since the model was made"
    if memory["peak_device_bytes"]:
        above = memory["peak_device_bytes"]
        text += f"; {format_bytes(above)} on the GPU"
    ratio = f", {planned / max(1, above):.2f} of that" if planned >= _COMPARABLE_BYTES else ""
    return f"{text} (predicted for tensors: {format_bytes(planned)}{ratio})"


def bytes_table(kinds: list[dict[str, Any]]) -> Table:
    """Bytes held by kind beside those of the same model dense, and their ratio."""
    table = Table(title="state in memory against the same model dense", title_justify="left")
    table.add_column("kind")
    planned = any("planned_bytes" in row for row in kinds)
    for column in ("held", *(["predicted"] if planned else []), "dense", "ratio"):
        table.add_column(column, justify="right")
    total = {
        "kind": "total",
        "bytes": sum(row["bytes"] for row in kinds),
        "planned_bytes": sum(row.get("planned_bytes", 0) for row in kinds),
        "dense_bytes": sum(row["dense_bytes"] for row in kinds),
    }
    for row in [*kinds, total]:
        ratio = f"{row['bytes'] / row['dense_bytes']:.3f}" if row["dense_bytes"] else "-"
        if row is total:
            table.add_section()
        predicted = [format_bytes(row.get("planned_bytes", 0))] if planned else []
        table.add_row(row["kind"], format_bytes(row["bytes"]), *predicted, format_bytes(row["dense_bytes"]), ratio)
    return table


def print_run_summary(console: Console, run_folder: Path) -> None:
    """Print the summary of a run; a metrics.jsonl that holds what no run writes is a warning: the run is what it is."""
    try:
        with opening.malformed(str(run_folder / "metrics.jsonl"), SmetError, "there is no summary"):
            print_summary(console, run_summary(run_folder))
    except SmetError as error:
        log.warning("%s", error)


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print losses, spikes, speed, and bytes by kind against dense."""
    console.print(_facts_table(summary))
    if "memory" in summary:
        console.print(bytes_table(summary["memory"]["kinds"]))
