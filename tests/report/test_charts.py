"""What the charts show is what the metrics say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smet_train.report.charts import Chart, Report, Series, Table
from smet_train.report.report import build_report
from smet_train.report.runs import find
from smet_train.report.spikes import OFFSETS, windows
from smet_train.report.thin import smoothed, thinned

MakeRun = Callable[..., Path]
EVERY_CHART = {
    "loss_steps", "loss_tokens", "loss_flops", "spike_overlay", "spikes_train", "spikes_probe", "ever_active",
    "survived", "mean_age", "densities", "map_updates", "map_first", "map_last", "memory", "lr", "grad_norm",
    "tokens_per_s",
}  # fmt: skip


def report(*folders: Path) -> Report:
    return build_report(find(folders))


def chart(made: Report, key: str) -> Chart:
    [found] = [chart for chart in made.charts if chart.key == key]
    return found


def line(of: Chart, label: str) -> Series:
    [found] = [series for series in of.series if series.label == label]
    return found


def table(made: Report, title: str) -> Table:
    [found] = [table for section in made.sections for table in section.tables if table.title == title]
    return found


def metrics(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(change(path.read_text()))


def without(folder: Path, *kinds: str) -> None:
    told = tuple(f'"event": "{kind}"' for kind in kinds)
    metrics(folder, lambda text: "".join(row for row in text.splitlines(True) if not any(kind in row for kind in told)))


def test_a_finished_run_has_every_chart_and_leaves_nothing_out(finished: Path) -> None:
    made = report(finished)
    assert {chart.key for chart in made.charts} == EVERY_CHART
    assert not made.left_out


def test_losses_are_those_of_the_events(finished: Path) -> None:
    made = report(finished)
    raw = line(chart(made, "loss_steps"), "training")
    assert raw.x == tuple(range(1, 201))
    assert raw.y[0] == 8.0
    assert raw.y[50] == pytest.approx(8 / np.sqrt(51) + 0.5, abs=1e-12)
    validation = line(chart(made, "loss_steps"), "validation")
    assert (validation.x, validation.y) == ((0, 200), (9.0, 4.5))
    marks = chart(made, "loss_steps").marks
    assert marks is not None
    assert marks.x == (50, 100, 150)


def test_tokens_and_operations_are_the_steps_in_another_unit(finished: Path) -> None:
    made = report(finished)
    tokens, flops = chart(made, "loss_tokens"), chart(made, "loss_flops")
    assert tokens.x.text == "trained on (thousand tokens)"
    assert line(tokens, "validation").x == (0, 20)
    assert line(tokens, "training").x[:2] == (0.1, 0.2)
    assert flops.x.text == "computed (MFLOP)"
    assert line(flops, "validation").x == (0, 400)
    assert line(flops, "training").y == line(tokens, "training").y


def test_the_window_around_an_update_is_the_loss_less_its_baseline(finished: Path) -> None:
    [run] = find([finished]).runs
    rows = windows(run)
    assert rows.shape == (3, 41)
    losses = run.column("train", "loss")
    for row, update in zip(rows, (50, 100, 150), strict=True):
        assert row == pytest.approx(losses[update + OFFSETS - 1] - 1.0)
    overlay = chart(report(finished), "spike_overlay")
    assert line(overlay, "mean of 3 updates").y == pytest.approx(rows.mean(axis=0))


def test_without_a_spike_event_the_baseline_is_the_mean_of_the_ten_losses_before(finished: Path) -> None:
    without(finished, "spike")
    [run] = find([finished]).runs
    losses = run.column("train", "loss")
    assert windows(run)[0] == pytest.approx(losses[50 + OFFSETS - 1] - losses[40:50].mean())


def test_a_window_ends_where_the_next_update_begins(make_run: MakeRun) -> None:
    folder = make_run("short")
    metrics(folder, lambda text: text.replace('"event": "topology", "step": 100', '"event": "topology", "step": 60'))
    [run] = find([folder]).runs
    assert np.isfinite(windows(run)[0]).tolist() == [offset <= 10 for offset in OFFSETS]


def test_spikes_topology_and_memory_are_those_of_the_events(finished: Path) -> None:
    made = report(finished)
    assert chart(made, "spikes_train").series[0].y == (0.5, 0.5, 0.5)
    assert chart(made, "spikes_probe").series[0].y == (0.25, 0.25, 0.25)
    assert chart(made, "survived").series[0].y == (0.5, 0.5, 0.5)
    assert chart(made, "mean_age").series[0].y == (25, 50, 75)
    densities = chart(made, "densities").series[0]
    assert (densities.y, densities.names) == ((0.1, 0.2), ("layers.0.q_proj", "layers.0.up_proj"))
    memory = chart(made, "memory")
    assert memory.x.categories == ("finished", "dense")
    assert memory.bars[0].tops == (1.0, 10.0)
    assert ("total", "1.00", "10.00", "0.100") in table(made, "Memory by kind: finished").rows
    assert len(table(made, "Spikes").rows) == 6


def test_the_map_is_the_mean_over_outputs_then_the_first_and_the_last_grid(finished: Path) -> None:
    made = report(finished)
    over, last = chart(made, "map_updates").heat_map, chart(made, "map_last").heat_map
    assert over is not None
    assert last is not None
    assert np.array(over.rows).shape == (3, 4)
    assert [row[0] for row in over.rows] == pytest.approx([0.2, 0.3, 0.4])
    assert last.rows == ((0.1, 0.2, 0.3), (0.3, 0.4, 0.50015))
    first = chart(made, "map_first").heat_map
    assert first is not None
    assert (first.low, first.high) == (last.low, last.high) == (0.1, 0.50015)


def test_half_a_last_line_belongs_to_a_run_that_is_writing_it(make_run: MakeRun) -> None:
    folder = make_run("running")
    without(folder, "memory", "end")
    metrics(folder, lambda text: text + '{"event": "train", "st')
    made = report(folder)
    assert line(chart(made, "loss_steps"), "training").x[-1] == 120
    assert ("state", "training, or killed") in table(made, "Runs").rows
    assert [chart.why for chart in made.left_out] == ["memory is recorded when a run ends, and none has yet"]


def test_what_a_dense_or_older_run_lacks_is_left_out_with_the_reason(make_run: MakeRun) -> None:
    folder = make_run("dense", method="dense", step_flops=None, layer_densities=None)
    without(folder, "topology", "topology_map", "spike")
    made = report(folder)
    keys = {"loss_steps", "loss_tokens", "memory", "lr", "grad_norm", "tokens_per_s"}
    assert {chart.key for chart in made.charts} == keys
    why = " ".join(chart.why for chart in made.left_out)
    assert all(name in why for name in ("step_flops", "has not moved", "layer_densities", "tracking.map_layer"))


def test_a_run_whose_topology_stays_is_beside_one_that_moves(make_run: MakeRun) -> None:
    still, moving = make_run("still", method="static"), make_run("moving")
    without(still, "topology", "spike")
    overlay = chart(report(still, moving), "spike_overlay")
    assert {series.label for series in overlay.series} == {"smet"}


def test_a_run_without_a_step_is_a_page_of_reasons(make_run: MakeRun) -> None:
    folder = make_run("begun")
    metrics(folder, lambda text: text.splitlines(True)[0])
    made = report(folder)
    assert {chart.key for chart in made.charts} == {"densities"}
    assert made.left_out[0].why == "no run has taken a step yet"


def test_a_loss_that_is_no_number_is_a_gap(make_run: MakeRun) -> None:
    folder = make_run("nan")
    metrics(folder, lambda text: text.replace('"step": 7, "loss": ', '"step": 7, "loss": "nan", "was": '))
    raw = line(chart(report(folder), "loss_steps"), "training")
    assert [step for step, loss in zip(raw.x, raw.y, strict=True) if np.isnan(loss)] == [7]


def test_runs_are_told_apart_by_what_differs(make_run: MakeRun) -> None:
    both = {"optimizer": {"lr": 0.1}, "topology": {"grow": "random"}}
    a = make_run("a", settings=both)
    b = make_run("b", settings={**both, "topology": {"grow": "gradient"}}, method="rigl")
    c = make_run("c", settings={**both, "optimizer": {"lr": 0.2}}, seed=2)
    made = report(a, b, c, a)
    assert table(made, "Runs").columns == (
        "run",
        "smet, lr=0.1, seed 1",
        "rigl, lr=0.1, seed 1",
        "smet, lr=0.2, seed 2",
    )
    losses = chart(made, "loss_steps").series
    assert [series.color for series in losses] == sorted(series.color for series in losses)
    assert len(chart(made, "spike_overlay").bands) == 3


def test_equal_runs_are_told_apart_by_their_folders(make_run: MakeRun) -> None:
    made = report(make_run("x/run"), make_run("y/run"))
    assert table(made, "Runs").columns == ("run", "x/run", "y/run")


def test_more_runs_than_a_legend_holds_or_maps_are_drawn(make_run: MakeRun) -> None:
    made = report(*(make_run(f"run{seed}", seed=seed) for seed in range(14)))
    assert not chart(made, "lr").shows_legend
    assert [left.why for left in made.left_out] == ["of the other 8 runs: report them one by one"]
    assert table(made, "Runs").columns[:2] == ("run", "state")


def sweep(make_run: MakeRun, folder: str, densities: tuple[float, ...] = (0.05, 0.1)) -> Path:
    for density in densities:
        for seed in (1, 2):
            job = make_run(f"{folder}/d{density},s{seed}", density=density, seed=seed)
            loss = 4.0 + density + seed / 10
            metrics(job, lambda text, loss=loss: text.replace('"loss": 4.5', f'"loss": {loss}'))  # type: ignore[misc]
    return job.parent


def test_a_sweep_has_means_and_deviations_over_seeds_by_density(make_run: MakeRun) -> None:
    made = report(sweep(make_run, "sweep"))
    drawn = chart(made, "sweep1_validation_loss")
    [means] = drawn.series
    assert means.x == drawn.x.ticks == (0.05, 0.1)
    assert means.y == pytest.approx((4.2, 4.25))
    assert means.errors == pytest.approx((0.1 / np.sqrt(2),) * 2)
    assert table(made, "Sweep by density").rows[0][:4] == ("smet", "0.05", "2", "4.2000 ± 0.0707")


def test_a_sweep_over_methods_has_them_side_by_side(make_run: MakeRun) -> None:
    parent = make_run("sweep/a", method="set").parent
    make_run("sweep/b", method="smet")
    made = report(parent)
    assert chart(made, "sweep1_speed").x.categories == ("set", "smet")


def search(make_run: MakeRun, folder: str, rates: tuple[float, ...]) -> Path:
    """A sweep of these learning rates at two densities, whose validation loss is 4 + the rate + the density."""
    for rate in rates:
        for density in (0.05, 0.1):
            settings = {"optimizer": {"lr": rate}, "sparsity": {"density": density}, "train": {"compile": False}}
            job = make_run(f"{folder}/lr{rate},d{density}", settings=settings, density=density)
            loss = 4.0 + rate + density
            metrics(job, lambda text, loss=loss: text.replace('"loss": 4.5', f'"loss": {loss}'))  # type: ignore[misc]
    return job.parent


def test_a_search_has_its_losses_by_what_was_searched(make_run: MakeRun) -> None:
    parent = search(make_run, "search", (0.01, 0.0001, 0.001))
    metrics(make_run("search/diverged", settings={"optimizer": {"lr": 0.1}}), lambda text: text.replace("4.5", "NaN"))
    made = report(parent)
    drawn = chart(made, "sweep1_optimizer_lr")
    assert (drawn.title, drawn.x.log) == ("Validation loss by optimizer.lr", True)
    assert [series.label for series in drawn.series] == ["d=0.05", "d=0.1"]
    assert line(drawn, "d=0.1").x == (0.0001, 0.001, 0.01)
    assert line(drawn, "d=0.1").y == pytest.approx((4.1001, 4.101, 4.11))
    assert line(drawn, "d=0.1").names[0] == "lr0.0001,d0.1"


def test_two_values_of_a_setting_are_no_search(make_run: MakeRun) -> None:
    made = report(search(make_run, "pair", (0.001, 0.01)))
    assert "sweep1_optimizer_lr" not in {drawn.key for drawn in made.charts}


def test_a_search_of_more_things_than_a_legend_holds_has_no_labels(make_run: MakeRun) -> None:
    for number in range(14):
        settings = {"optimizer": {"lr": 0.001 * (number + 1), "eps": 1e-8 * (number + 1)}}
        parent = make_run(f"wide/{number}", settings=settings).parent
    drawn = chart(report(parent), "sweep1_optimizer_lr")
    assert [(series.label, len(series.x)) for series in drawn.series] == [("", 14)]


def test_a_job_of_a_sweep_that_wrote_nothing_is_noted(make_run: MakeRun) -> None:
    parent = sweep(make_run, "sweep")
    (parent / "failed").mkdir()
    (parent / "failed" / "console.log").write_text("smet-train: no")
    made = report(parent)
    assert made.notes == ("failed wrote no metrics; its console.log may say why.",)


def test_a_sweep_that_has_hardly_begun_leaves_its_charts_out(make_run: MakeRun) -> None:
    parent = sweep(make_run, "sweep", (0.1,))
    for job in parent.iterdir():
        metrics(job, lambda text: text.splitlines(True)[0])
    assert "no run has come to it yet" in {left.why for left in report(parent).left_out}


def test_thinning_keeps_the_peaks_and_the_order() -> None:
    x = np.arange(10_000.0)
    y = np.zeros_like(x)
    y[[1234, 7777]] = 9.0, -9.0
    y[5000:5200] = np.nan
    thin_x, thin_y = thinned(x, y, 200)
    assert len(thin_x) <= 200
    assert list(thin_x) == sorted(thin_x)
    points = dict(zip(thin_x, thin_y, strict=True))
    assert (points[1234], points[7777]) == (9.0, -9.0)
    assert np.isnan(list(points.values())).any()
    assert thinned(x[:50], y[:50], 200) == (tuple(x[:50].tolist()), tuple(y[:50].tolist()))


def test_smoothing_is_the_mean_of_the_last_finite_values() -> None:
    assert smoothed(np.array([1.0, 3.0, np.nan, 5.0]), 2).tolist() == [1.0, 2.0, 3.0, 5.0]
    assert np.isnan(smoothed(np.array([np.nan, 1.0]), 1)[0])


def test_a_chart_says_its_units_only_if_it_has_them(finished: Path) -> None:
    axis = chart(report(finished), "loss_steps").y
    assert axis.text == "loss (nats a token)"
    assert replace(axis, unit="").text == "loss"


def test_updates_that_would_cover_the_chart_are_not_marked(make_run: MakeRun) -> None:
    made: Any = report(make_run("many", steps=60))
    assert chart(made, "loss_steps").marks is not None
