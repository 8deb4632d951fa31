"""Statistics and figures of the benchmarks, from written-down losses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from smet_train.bench.jobs import Outcome
from smet_train.bench.loss import (
    Arm,
    arm_figures,
    best_two,
    choose_arms,
    compare,
    final_grid,
    llama_parameters,
    rate_grid,
    run_name,
    small_dense_shape,
    untried_neighbours,
)
from smet_train.bench.lr_rule import best_rate, grid_jobs, job_name, rule_figures
from smet_train.bench.plots import plot_lines
from smet_train.bench.result import Bar, processor, write_result
from smet_train.bench.settings import LossBench, LrRuleBench, SpikeBench
from smet_train.bench.spike import ARMS, Curves, analyse, check_settings
from smet_train.bench.statistics import confidence_interval, mean_and_error
from smet_train.config.compose import compose, compose_own
from smet_train.errors import ConfigError
from smet_train.sparse_model import build_sparse_model


def test_mean_and_standard_error_by_hand() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert mean_and_error([5.0]) == (5.0, float("inf"))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = confidence_interval(list(draw.normal(3.0, 1.0, 40)), resamples=500)
        covered += low <= 3.0 <= high
    assert covered >= 85
    assert confidence_interval([1.0, 2.0, 4.0]) == confidence_interval([1.0, 2.0, 4.0])


def curves(offset: float, peak: float) -> list[Curves]:
    return [
        Curves([2.0, 2.0], [2.0 + offset + noise, 2.1 + offset], [3.0, 3.0 + peak + noise, 3.0 + offset])
        for noise in (0.0, 0.01, 0.02)
    ]


def test_excess_is_against_the_drop_arm_and_bars_follow() -> None:
    measured = {"none": curves(0, 0), "drop": curves(0, 0), "naive": curves(0.2, 0.5), "smet": curves(0, 0.02)}
    figures, bars = analyse(measured)
    assert figures["drop"]["peak_excess"]["mean"] == 0
    assert figures["naive"]["peak_excess"]["samples"] == pytest.approx([0.5, 0.5, 0.5])
    assert figures["naive"]["train_peak_over_none"]["mean"] == pytest.approx(0.2)
    assert figures["smet"]["mean_excess"] == pytest.approx([0, 0.02, 0])
    assert bars[1].value == pytest.approx(0.04)
    assert [bar.holds for bar in bars] == [True, True, True]
    figures, bars = analyse({**measured, "smet": curves(0.2, 0.5), "naive": curves(0, 0)})
    assert [bar.holds for bar in bars] == [False, False, False]
    assert set(figures) == set(ARMS)


@pytest.mark.parametrize(
    ("overrides", "bench", "message"),
    [
        (["topology.interval=20"], SpikeBench(warm_steps=100), "shorter than tracking.spike_horizon_steps=30"),
        (["tracking.probe_windows=0"], SpikeBench(), "leaves no probe batch"),
        (["method=set"], SpikeBench(), "leave method=smet"),
        ([], SpikeBench(warm_steps=60), "write bench.warm_steps=100"),
    ],
)
def test_settings_that_leave_nothing_to_measure(overrides: list[str], bench: SpikeBench, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(compose(["+experiment=bench_spike", *overrides]), bench)
    check_settings(compose(["+experiment=bench_spike"]), SpikeBench())


def test_arms_are_methods_at_densities_with_their_dense_rivals() -> None:
    arms = choose_arms(lambda more: compose(["+experiment=bench_loss", *more]), LossBench(methods=["set", "smet"]))
    assert [arm.name for arm in arms] == [
        "dense", "set_0.25", "smet_0.25", "small_dense_0.25", "set_0.1", "smet_0.1", "small_dense_0.1",
    ]  # fmt: skip


def test_the_small_dense_model_has_about_as_many_parameters_as_are_active() -> None:
    for density in (0.25, 0.1):
        config = compose(["+experiment=demo", f"sparsity.density={density}", "model.tie_embeddings=true"])
        target = llama_parameters(config, 256, 688, density)
        width, inner = small_dense_shape(config)
        assert abs(llama_parameters(config, width, inner, 1.0) / target - 1) < 0.05


def test_parameters_are_counted_as_the_model_has_them() -> None:
    import torch

    config = compose(["+experiment=demo", "model.kv_heads=2", "sparsity.density=0.1"])
    tokenizer = type("Tokenizer", (), {"vocab_size": 4096, "eos_id": 0})()
    model, _ = build_sparse_model(config, tokenizer, torch.device("cpu"))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert abs(counted - llama_parameters(config, 256, 688, 0.1)) <= 28


@pytest.mark.parametrize(
    "override", ["model=gpt2_124m", "sparsity.densities=['*.q_proj=0.5']", "sparsity.exclude=['*.q_proj']"]
)
def test_a_small_dense_model_is_made_only_where_it_can_be_like_the_sparse_one(override: str) -> None:
    with pytest.raises(ConfigError, match=r"bench\.small_dense=true compares a LLaMA"):
        small_dense_shape(compose([override]))


def outcome(*losses: float) -> Outcome:
    return Outcome({step * 10: loss for step, loss in enumerate(losses)}, 100, 7)


def test_a_run_is_judged_by_its_last_evaluations() -> None:
    run = outcome(9, 4, 3, 2)
    assert (run.final, run.late(1), run.late(2), run.late(3), run.late(9)) == (2, 2, 2.5, 3, 4.5)
    figures = arm_figures(
        Arm("set", 0.1, ()), {"set_0.1_lr0.01_seed1": run}, 0.01, LossBench(seeds=[1], last_evaluations=2)
    )
    assert figures["final_losses"] == [2.5]
    assert not figures["rate_at_grid_edge"]


def test_rates_are_chosen_by_the_short_runs() -> None:
    bench = LossBench(learning_rates=[1e-3, 1e-2, 1e-1], seeds=[7, 8], last_evaluations=2)
    arm = Arm("set", 0.1, ())
    tuning = {f"set_0.1_lr{rate}": outcome(4, loss) for rate, loss in (("0.001", 3.5), ("0.01", 3.2), ("0.1", 3.3))}
    grid = rate_grid([arm], tuning, bench)
    assert grid == {"set_0.1": {"0.001": 3.5, "0.01": 3.2, "0.1": 3.3}}
    assert best_two(grid["set_0.1"]) == [0.01, 0.1]
    assert best_two({"0.5": 1.0}) == [0.5]
    assert best_two({"1": 3.0, "2": math.nan, "3": 2.9, "4": math.inf}) == [3, 1]
    outcomes = {"set_0.1_lr0.01_seed7": outcome(4, 3, 2), "set_0.1_lr0.1_seed7": outcome(4, 3, 1)}
    final = final_grid([arm], outcomes, bench)
    assert final == {"set_0.1": {"0.01": 2.5, "0.1": 2.0}}


def test_whole_runs_walk_until_the_best_has_no_untried_neighbour() -> None:
    grid = [1e-2, 1e-3, 1.0, 1e-1]
    assert untried_neighbours({"0.1": 2.0, "0.01": 3.0}, grid) == [1.0]
    assert untried_neighbours({"0.1": 2.0}, grid) == [1e-2, 1.0]
    assert untried_neighbours({"0.1": 2.0, "0.01": 3.0, "1": 4.0}, grid) == []
    assert untried_neighbours({"0.001": 2.0}, grid) == [1e-2]
    assert untried_neighbours({"0.001": 2.0, "0.01": 3.0}, grid) == []


def test_differences_are_paired_by_seed() -> None:
    bench = LossBench(densities=[0.1], seeds=[1, 2, 3], last_evaluations=1)
    finals = {"smet": (3.0, 4.0, 5.0), "set": (3.1, 4.1, 5.1), "static": (3.2, 3.9, 5.0), "dense": (2.0, 3.0, 4.0)}
    figures = {}
    for method, losses in finals.items():
        arm = Arm(method, 1.0 if method == "dense" else 0.1, ())
        runs = {run_name(arm, 0.01, seed): outcome(6, loss) for seed, loss in zip(bench.seeds, losses, strict=True)}
        figures[arm.name] = arm_figures(arm, runs, 0.01, bench)
    assert figures["smet_0.1"]["mean"] == 4.0
    assert figures["smet_0.1"]["curve"] == {0: 6.0, 10: 4.0}
    comparisons, bars = compare(figures, bench)
    by_method = {entry["method"]: entry for entry in comparisons}
    assert by_method["set"]["minus_smet"] == pytest.approx(0.1)
    assert by_method["set"]["standard_error"] == pytest.approx(0, abs=1e-12)
    assert by_method["dense"]["minus_smet"] == pytest.approx(-1)
    assert [bar.holds for bar in bars] == [True, False]
    assert compare({}, bench) == ([], [])


def test_the_best_rate_is_the_vertex_of_a_parabola_in_the_logarithm() -> None:
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    losses = [(np.log10(rate) + 2.3) ** 2 for rate in rates]
    assert best_rate(rates, losses) == pytest.approx(10**-2.3)
    assert best_rate(rates, [1, 2, 3, 4]) == 1e-4
    assert best_rate(rates, [4, 3, 2, 1]) == 1e-1
    assert best_rate(rates, [3, 1, 1, 1]) == pytest.approx(10**-2.5)


def test_a_rule_that_moves_nothing_has_no_spread() -> None:
    bench = LrRuleBench(rules=["sqrt", "none"], densities=[1.0, 0.25], learning_rates=[1e-3, 1e-2, 1e-1])
    jobs = grid_jobs(lambda more: compose(["+experiment=bench_loss", *more]), bench)
    assert len(jobs) == 9  # density 1 is the same under every rule
    centre = {"any": -2.0, "sqrt": -2.0, "none": -1.7}
    outcomes = {
        job_name(rule, density, rate, 1): outcome((np.log10(rate) - centre[rule if density < 1 else "any"]) ** 2)
        for rule in bench.rules
        for density in bench.densities
        for rate in bench.learning_rates
    }
    assert set(outcomes) == set(jobs)
    figures = rule_figures(outcomes, bench)
    assert figures["sqrt"]["spread_decades"] == pytest.approx(0, abs=1e-9)
    assert figures["none"]["spread_decades"] == pytest.approx(0.15)
    assert figures["none"]["best_rate"]["0.25"] == pytest.approx(10**-1.7)


def test_the_result_holds_bars_figures_and_where_they_come_from(tmp_path: Path) -> None:
    path = write_result(tmp_path / "new", "spike", [Bar("b", 1.0, 2.0, True)], {"arms": {}}, "smet-bench spike")
    result = json.loads(path.read_text())
    assert result["bars"] == [{"name": "b", "value": 1.0, "bar": 2.0, "holds": True}]
    assert {"benchmark", "date", "hardware", "versions", "command", "arms"} <= set(result)
    assert processor()


def test_a_plot_is_written(tmp_path: Path) -> None:
    plot_lines(tmp_path / "new" / "a.png", [("t", {"a": ([0, 1], [1, 2])}), ("u", {"b": ([0, 1], [2, 1])})], "x", "y")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_settings_of_a_benchmark_are_checked() -> None:
    bench = compose_own("bench.", ["bench.seeds=[4,5]", "bench.out=x", "bench.dense=false"], LossBench())
    assert (bench.seeds, bench.out, bench.dense, bench.tune_steps) == ([4, 5], "x", False, LossBench().tune_steps)
    for override, message in [
        ("bench.zeeds=1", "unknown key bench.zeeds; there is bench.out"),
        ("bench.densities=[2]", r"bench.densities=\[2.0\] is out of range"),
        ("bench.tune_steps=x", "could not be converted|not a whole number"),
    ]:
        with pytest.raises(ConfigError, match=message):
            compose_own("bench.", [override], LossBench())
