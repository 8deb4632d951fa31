"""What a person reads: the summary, the layers and the sweep, from written-down events."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from smet_train.analysis.layers import group_layers, print_layers
from smet_train.analysis.summary import bytes_table, format_bytes, peak_text, print_summary, run_summary
from smet_train.analysis.sweep import COLUMNS, keep_times, print_sweep_table, sweep_rows, write_sweep_csv
from smet_train.sparse import sparsify

EVENTS: list[dict[str, Any]] = [
    {"event": "run", "method": "smet", "density": 0.1, "beta2": 0.999},
    {"event": "eval", "step": 0, "loss": 8.0, "perplexity": 2981.0},
    *(
        {"event": "train", "step": s, "loss": float(20 - s), "tokens": 10 * s, "tokens_per_s": float(s)}
        for s in range(1, 13)
    ),
    {"event": "topology", "step": 5},
    {"event": "spike", "step": 5, "source": "train", "spike": 0.5},
    {"event": "spike", "step": 9, "source": "train", "spike": 0.1},
    {"event": "spike", "step": 9, "source": "probe", "spike": 0.25},
    {"event": "eval", "step": 12, "loss": 5.5, "perplexity": 244.7},
    {
        "event": "memory",
        "peak_rss_bytes": 3 * 2**30,
        "kinds": [
            {"kind": "values", "bytes": 1024, "dense_bytes": 10240},
            {"kind": "index", "bytes": 1024, "dense_bytes": 0},
        ],
    },
    {"event": "end", "step": 12, "reason": "finished"},
]


def write_run(folder: Path, events: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def printed(show: Any, *arguments: Any) -> str:
    console = Console(width=200, record=True, quiet=False, force_terminal=False)
    show(console, *arguments)
    return console.export_text()


def test_the_summary_is_read_from_the_events(tmp_path: Path) -> None:
    summary = run_summary(write_run(tmp_path, EVENTS))
    assert summary["train_loss"] == 12.5  # mean of steps 3 to 12
    assert (summary["step"], summary["tokens"], summary["tokens_per_s"]) == (12, 120, 6.5)
    assert (summary["first_eval_loss"], summary["eval_loss"], summary["topology_updates"]) == (8.0, 5.5, 1)
    assert summary["spikes"]["train"] == {"count": 2, "mean": 0.3, "largest": 0.5}
    assert summary["spikes"]["probe"]["count"] == 1
    text = printed(print_summary, summary)
    assert "5.5000 (fell by 2.5000 nats)" in text
    assert "mean +0.3000, largest +0.5000 nats over 2 updates (beta2 0.999)" in text
    assert "3.00 GiB" in text
    assert "0.200" in text  # the total: 2 KiB of 10 KiB


def test_what_was_predicted_stands_beside_what_was_held() -> None:
    kinds = [{"kind": "values", "bytes": 2048, "planned_bytes": 1024, "dense_bytes": 8192}]
    memory = {"peak_rss_bytes": 5 * 2**30, "start_rss_bytes": 2**30, "peak_device_bytes": 0, "kinds": kinds}
    memory["planned_peak_bytes"] = 3 * 2**30
    text = peak_text(memory)
    assert text == (
        "5.00 GiB in the process, 4.00 GiB of it since the model was made "
        "(predicted for tensors: 3.00 GiB, 0.75 of that)"
    )
    text = peak_text({**memory, "peak_device_bytes": 6 * 2**30})
    assert text.endswith("; 6.00 GiB on the GPU (predicted for tensors: 3.00 GiB, 0.50 of that)")
    table = printed(lambda console: console.print(bytes_table(kinds)))
    assert "predicted" in table
    assert "1.00 KiB" in table


def test_a_small_prediction_is_not_compared_with_a_process_full_of_libraries() -> None:
    memory = {"peak_rss_bytes": 2**30, "start_rss_bytes": 2**29, "peak_device_bytes": 0, "planned_peak_bytes": 2**20}
    assert peak_text(memory).endswith("since the model was made (predicted for tensors: 1.00 MiB)")


@pytest.mark.parametrize(
    ("eval_steps", "text"),
    [
        ([0, 12], "5.5000 (fell by 2.5000 nats)"),
        ([0, 10], "5.5000 (at step 10, fell by 2.5000 nats)"),
        ([12], "5.5000 "),
        ([0], "5.5000 (at step 0)"),
    ],
)
def test_a_validation_loss_says_of_which_step_it_is(tmp_path: Path, eval_steps: list[int], text: str) -> None:
    """As of a run that was stopped between two evaluations, or has made one."""
    events = [event for event in EVENTS if event["event"] != "eval"]
    losses = [8.0, 5.5][-len(eval_steps) :]
    events += [
        {"event": "eval", "step": step, "loss": loss, "perplexity": 1.0}
        for step, loss in zip(eval_steps, losses, strict=True)
    ]
    summary = run_summary(write_run(tmp_path, events))
    assert summary["eval_step"] == eval_steps[-1]
    told = printed(print_summary, summary)
    assert text in told
    assert ("fell" in told) == (len(eval_steps) > 1)


def test_numbers_that_are_not_finite_are_numbers(tmp_path: Path) -> None:
    """They are texts in the file, as JSON has none."""
    train = {"event": "train", "tokens": 8, "lr": 1.0, "grad_norm": 1.0}
    events = [{**train, "step": step, "loss": "nan", "tokens_per_s": "inf"} for step in (1, 2)]
    summary = run_summary(write_run(tmp_path, events))
    assert math.isnan(summary["train_loss"])
    assert summary["tokens_per_s"] == math.inf


def test_a_damaged_line_is_told_and_what_comes_before_it_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run's command typed again, and a sweep's table, are not stopped by it."""
    path = write_run(tmp_path, EVENTS) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:6], b"\x00\x00\n", *lines[6:]]))
    summary = run_summary(tmp_path)
    assert (summary["step"], "eval_loss" in summary) == (4, False)
    assert "the summary lacks what comes after it, and validation losses: " in caplog.text
    assert "metrics.jsonl, line 7: " in caplog.text


def test_a_folder_without_a_run_has_an_empty_summary(tmp_path: Path) -> None:
    assert run_summary(tmp_path) == {"topology_updates": 0, "spikes": {}}
    assert "topology updates" in printed(print_summary, run_summary(tmp_path))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (2**21, "2.00 MiB"), (2**41, "2048.00 GiB")]
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_alike_layers_share_a_row() -> None:
    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList(
                [nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)}) for _ in range(3)]
            ),
            "head": nn.Linear(8, 8),
        }
    )
    layers = sparsify(model, ["*"], density=0.25, seed=1, backend="densify")
    rows = group_layers(layers)
    assert [(row["name"], row["count"], row["shape"], row["active"]) for row in rows] == [
        ("blocks.*.up", 3, "16x8", 32),
        ("blocks.*.down", 3, "8x16", 32),
        ("head", 1, "8x8", 16),
    ]
    text = printed(print_layers, layers)
    assert all(word in text for word in ("blocks.*.up", "0.25", "densify", "16x8"))


def test_the_sweeps_table_lists_failed_jobs_too(tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = [
        {"name": "d=0.1", "status": "done", "error": None, "wall_s": 3.5, "folder": write_run(tmp_path / "a", EVENTS)},
        {"name": "d=9", "status": "failed", "error": "out of range", "wall_s": 0.5, "folder": tmp_path / "b"},
    ]
    rows = sweep_rows(jobs)
    write_sweep_csv(tmp_path / "sweep.csv", rows)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(COLUMNS)
    assert (read[0]["eval_loss"], read[0]["mean_spike"], read[0]["error"]) == ("5.5", "0.3", "")
    assert (read[1]["status"], read[1]["eval_loss"], read[1]["error"]) == ("failed", "", "out of range")
    text = printed(print_sweep_table, rows)
    assert "d=9: out of range" in text
    assert "+0.3000" in text


def test_a_table_that_can_not_be_read_has_no_times_to_keep(tmp_path: Path) -> None:
    rows = [{**dict.fromkeys(COLUMNS), "status": "done", "step": 6, "folder": "a", "wall_s": 1.0}]
    table = tmp_path / "sweep.csv"
    assert keep_times(rows, table) == rows
    write_sweep_csv(table, [{**rows[0], "wall_s": 50.0}])
    assert keep_times(rows, table)[0]["wall_s"] == "50.0"
    write_sweep_csv(table, [{**rows[0], "wall_s": 50.0, "error": "e" * 200_000}])
    assert keep_times(rows, table) == rows
