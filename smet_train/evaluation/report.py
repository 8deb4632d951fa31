"""An evaluation from an open model to its table and its JSON file."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smet_train.evaluation.loss import TextLoss, recorded_loss, text_loss
from smet_train.evaluation.results import EVALS_NAME, circumstances, require_own_evals, result_path, write_result
from smet_train.evaluation.tasks import run_tasks
from smet_train.trained import Trained

_LONGEST_NAME = 60


def evaluate_text(
    console: Console,
    trained: Trained,
    split: str,
    data: Mapping[str, Any] | None,
    max_tokens: int | None,
    *,
    batch_size: int | None,
    out: Path | None,
    command: list[str],
    started: float,
) -> None:
    """Print and write the loss on a text; arguments as of ``text_loss``, ``started`` by ``time.perf_counter``."""
    with _progress(console) as tell:
        found = text_loss(trained, split=split, data=data, max_tokens=max_tokens, batch_size=batch_size, progress=tell)
    recorded = recorded_loss(trained) if split == "eval" and max_tokens is None else None
    seconds = time.perf_counter() - started
    console.print(_loss_table(found, recorded, seconds))
    name = split if data is None else f"{data['source'].name}-{split}-{found.fingerprint[:8]}"
    path = out or result_path(trained, name + _limits(max_tokens=max_tokens))
    more = {} if recorded is None else {"recorded_loss": recorded}
    _write(console, path, {"kind": "loss", **asdict(found), **more, **circumstances(trained, command, seconds)})


def evaluate_tasks(
    console: Console,
    trained: Trained,
    tasks: list[str],
    task_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    *,
    batch_size: int | None,
    out: Path | None,
    command: list[str],
    started: float,
) -> None:
    """Print and write the scores on tasks; arguments as of ``run_tasks``, ``started`` by ``time.perf_counter``."""
    size = batch_size or trained.config.train.micro_batch_size
    found = run_tasks(trained, tasks, task_path=task_path, limit=limit, num_fewshot=num_fewshot, batch_size=size)
    console.print(_task_table(found))
    path = out or result_path(trained, _task_name(tasks) + _limits(limit=limit, num_fewshot=num_fewshot))
    seconds = time.perf_counter() - started
    settings = {"tasks": tasks, "limit": limit, "num_fewshot": num_fewshot, "batch_size": size}
    _write(console, path, {"kind": "tasks", **settings, **found, **circumstances(trained, command, seconds)})


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """Tells of the tokens that are done, on a terminal."""
    with console.status("reading …") as status:
        yield lambda tokens: status.update(f"{tokens:,} tokens")


def _loss_table(found: TextLoss, recorded: float | None, seconds: float) -> Table:
    table = Table(title=f"loss on {found.data}", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value")
    what = {
        "eval": "the windows of the run's own evaluations",
        "validation": "all held-out documents",
        "all": "all documents",
    }
    table.add_row("text", what[found.split])
    last = f", the last of {found.last_window_tokens}" if found.last_window_tokens else ""
    table.add_row("windows", f"{found.windows:,} of {found.sequence_tokens} tokens{last}")
    table.add_row("predicted tokens", f"{found.tokens:,} ({found.text_bytes:,} bytes of text)")
    table.add_row("loss", f"{found.loss:.4f} nats a token")
    if recorded is not None:
        table.add_row("loss in metrics.jsonl", f"{recorded:.4f}")
    table.add_row("perplexity", f"{found.perplexity:.2f}")
    table.add_row("bits per byte", f"{found.bits_per_byte:.4f}")
    table.add_row("time", f"{seconds:.1f} s")
    return table


def _task_table(found: dict[str, Any]) -> Table:
    table = Table(title="LM evaluation harness", title_justify="left")
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("value", "standard error", "shots", "documents"):
        table.add_column(column, justify="right")
    for task, scores in found["results"].items():
        for metric, filtered in (key.split(",", 1) for key in scores if "," in key and "_stderr" not in key):
            error = scores.get(f"{metric}_stderr,{filtered}")
            table.add_row(
                task,
                metric if filtered == "none" else f"{metric} ({filtered})",
                f"{scores[f'{metric},{filtered}']:.4f}",
                f"{error:.4f}" if isinstance(error, float) else "",
                str(found["n-shot"].get(task, "")),
                str(found["n-samples"].get(task, {}).get("effective", "")),
            )
    return table


def _task_name(tasks: list[str]) -> str:
    """A file's name: of the tasks, or of their hash where those are too many or have odd characters."""
    name = "+".join(tasks)
    if len(name) <= _LONGEST_NAME and all(letter.isalnum() or letter in "+-_." for letter in name):
        return name
    return f"tasks-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _limits(**given: int | None) -> str:
    """What a file's name says of an evaluation that is not the whole one, so as not to take that one's place."""
    return "".join(f"-{key}_{value}" for key, value in given.items() if value is not None)


def _write(console: Console, path: Path, result: dict[str, Any]) -> None:
    if path.parent.name == EVALS_NAME:
        require_own_evals(path.parent)
    write_result(path, result)
    console.print(f"written {path}", soft_wrap=True)
