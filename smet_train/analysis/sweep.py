"""The table over the runs of a sweep, on the terminal and as CSV."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smet_train import opening
from smet_train.analysis.summary import run_summary
from smet_train.errors import SmetError
from smet_train.replacing import replacing
from smet_train.showing import cell, write_rows

log = logging.getLogger(__name__)

COLUMNS = (
    "name",
    "status",
    "step",
    "train_loss",
    "eval_loss",
    "eval_step",
    "perplexity",
    "mean_spike",
    "tokens_per_s",
    "wall_s",
    "error",
    "folder",
)


def sweep_rows(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a job, with the columns of ``COLUMNS``; what a job has not produced is None.

    Each job has name, status ("done", "failed" or "stopped"), error (text or None), wall_s and folder.
    """
    rows = []
    for job in jobs:
        summary = _summary(Path(job["folder"]))
        facts = {**summary, **job, "mean_spike": summary["spikes"].get("train", {}).get("mean")}
        rows.append({column: facts.get(column) for column in COLUMNS})
    return rows


def _summary(folder: Path) -> dict[str, Any]:
    """The facts of a run; none, with a warning, if its metrics.jsonl holds what no run writes."""
    try:
        with opening.malformed(str(folder / "metrics.jsonl"), SmetError, "its row is empty"):
            return run_summary(folder)
    except SmetError as error:
        log.warning("%s", error)
        return {"spikes": {}}


def keep_times(rows: list[dict[str, Any]], earlier: Path) -> list[dict[str, Any]]:
    """``rows``; a run that the table ``earlier`` has as done, at the same step, has the seconds that it took then: it
    was only looked at again."""
    if not earlier.is_file():
        return rows
    try:
        text = opening.read_bytes(earlier).decode("utf-8", errors="replace")
        table = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, csv.Error):  # of another program perhaps; the seconds are not worth a sweep's end
        return rows
    took = {tuple(row.get(key) for key in ("folder", "step", "status")): row.get("wall_s") for row in table}
    kept = []
    for row in rows:
        before = took.get((cell(str(row["folder"])), str(row["step"]), "done")) if row["status"] == "done" else None
        kept.append({**row, "wall_s": before} if before else row)
    return kept


def write_sweep_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """All columns, numbers in full precision, an empty cell for None; no text that a spreadsheet would compute."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        write_rows(file, COLUMNS, rows)


def print_sweep_table(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the runs, failed ones with the first line of their error."""
    table = Table(title="sweep", title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for column in ("step", "train loss", "val. loss", "perplexity", "mean spike", "tokens/s"):
        table.add_column(column, justify="right")
    formats = {
        "step": "{:,}",
        "train_loss": "{:.4f}",
        "eval_loss": "{:.4f}",
        "perplexity": "{:.2f}",
        "mean_spike": "{:+.4f}",
        "tokens_per_s": "{:,.0f}",
    }
    for row in rows:
        cells = ["-" if row[key] is None else text.format(row[key]) for key, text in formats.items()]
        table.add_row(row["name"], row["status"], *cells)
    console.print(table)
    for row in rows:
        if row["error"]:
            console.print(f"{row['name']}: {row['error']}", style="red", soft_wrap=True, markup=False)
