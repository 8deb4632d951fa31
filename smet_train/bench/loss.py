"""Methods, densities and seeds on the same tokens: which reaches the lower validation loss, and by how sure a margin.

Each arm's learning rate is chosen on one grid, with the first seed. Short runs say where to look, but forgive a rate
that is too high; so whole runs start from their two best rates and walk until the best has lost no neighbour on the
grid. Differences between arms are paired by seed, since runs of one seed see the same batches in the same order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smet_train.bench.jobs import Outcome, run_jobs
from smet_train.bench.plots import plot_lines
from smet_train.bench.result import Bar, write_result
from smet_train.bench.settings import LossBench
from smet_train.bench.statistics import mean_and_error
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.tracking.console import open_console

Compose = Callable[[list[str]], Config]
_ERRORS = 2.0  # standard errors by which a method must be better


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the table: a method at a density, as overrides of the experiment."""

    method: str
    density: float
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The method with its density, as in ``smet_0.1``; ``dense`` has none."""
        return self.method if self.method == "dense" else f"{self.method}_{self.density:g}"


def run_loss(compose: Compose, bench: LossBench, command: str) -> None:
    """The whole benchmark: choose rates, train, print, and write ``result.json`` and ``loss.png`` into ``bench.out``.

    Args:
        compose: the configuration that the command's overrides and further ones give.
    """
    console = open_console()
    out = Path(bench.out)
    arms = choose_arms(compose, bench)
    tuning = run_jobs(tuning_jobs(compose, arms, bench), out / "tune", bench.workers, _say(console))
    grid = rate_grid(arms, tuning, bench)

    def whole_runs(rates: dict[str, list[float]], seeds: list[int]) -> dict[str, Outcome]:
        jobs = {
            run_name(arm, rate, seed): compose([*arm.overrides, f"optimizer.lr={rate}", f"seed={seed}"])
            for seed in seeds
            for arm in arms
            for rate in rates[arm.name]
        }
        return run_jobs(jobs, out / "runs", bench.workers, _say(console))

    wanted = {arm.name: best_two(grid[arm.name]) for arm in arms}
    outcomes: dict[str, Outcome] = {}
    while any(wanted.values()):
        outcomes |= whole_runs(wanted, bench.seeds[:1])
        final = final_grid(arms, outcomes, bench)
        wanted = {arm.name: untried_neighbours(final[arm.name], bench.learning_rates) for arm in arms}
    rates = {name: best_two(losses)[0] for name, losses in final.items()}
    outcomes |= whole_runs({name: [rate] for name, rate in rates.items()}, bench.seeds[1:])
    figures = {arm.name: arm_figures(arm, outcomes, rates[arm.name], bench) for arm in arms}
    comparisons, bars = compare(figures, bench)
    facts = {"arms": figures, "learning_rate_grid": grid, "whole_run_grid": final, "comparisons": comparisons}
    path = write_result(out, "loss", bars, facts, command)
    plot(out / "loss.png", figures, bench)
    print_tables(console, figures, grid, final, comparisons)
    for bar in bars:
        console.print(f"{bar.name}: {bar.value:.2f} against {bar.bar:g}: {'holds' if bar.holds else 'does not hold'}")
    console.print(f"figures {path}, plot {out / 'loss.png'}", soft_wrap=True)


def _say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, soft_wrap=True)


def choose_arms(compose: Compose, bench: LossBench) -> list[Arm]:
    """Sparse methods at each density, and the dense ones they are held against."""
    arms = [Arm("dense", 1.0, ("method=dense",))] if bench.dense else []
    for density in bench.densities:
        sparse = [Arm(method, density, (f"method={method}", f"sparsity.density={density}")) for method in bench.methods]
        arms += sparse
        if bench.small_dense:
            width, inner = small_dense_shape(compose([f"sparsity.density={density}"]))
            shape = (f"model.hidden_size={width}", f"model.intermediate_size={inner}")
            arms.append(Arm("small_dense", density, ("method=dense", *shape)))
    return arms


def llama_parameters(config: Config, width: int, inner: int, density: float) -> int:
    """Active parameters of a LLaMA of this width, its projections at ``density``."""
    model = config.model
    kv_width = width // model.heads * (model.kv_heads or model.heads)
    projections = model.layers * (2 * width * width + 2 * width * kv_width + 3 * width * inner)
    embeddings = config.data.tokenizer.vocab_size * width * (1 if model.tie_embeddings else 2)
    return round(density * projections) + embeddings + (2 * model.layers + 1) * width


def small_dense_shape(config: Config) -> tuple[int, int]:
    """(hidden_size, intermediate_size) of the dense LLaMA, alike in depth and proportions, whose parameters are nearest
    to the active ones of ``config``.

    Raises:
        ConfigError: if ``config`` is of another family, or not all projections have the same density.
    """
    sparsity = config.sparsity
    if config.model.family.name != "llama" or sparsity.include or sparsity.exclude or sparsity.densities:
        raise ConfigError(
            "bench.small_dense=true compares a LLaMA of one density with a smaller dense one, not model.family="
            f"{config.model.family.name} with sparsity.include, exclude or densities; write bench.small_dense=false"
        )
    target = llama_parameters(config, config.model.hidden_size, config.model.intermediate_size, config.sparsity.density)
    ratio = config.model.intermediate_size / config.model.hidden_size
    step = 2 * config.model.heads  # heads of even size
    widths = range(step, config.model.hidden_size + step, step)
    shapes = [(width, max(1, round(ratio * width))) for width in widths]
    return min(shapes, key=lambda shape: abs(llama_parameters(config, shape[0], shape[1], 1.0) - target))


def tuning_jobs(compose: Compose, arms: list[Arm], bench: LossBench) -> dict[str, Config]:
    """Short runs of every arm at every rate, with the first seed."""
    short = [f"train.steps={bench.tune_steps}", f"seed={bench.seeds[0]}"]
    return {
        f"{arm.name}_lr{rate:g}": compose([*arm.overrides, f"optimizer.lr={rate}", *short])
        for arm in arms
        for rate in bench.learning_rates
    }


def rate_grid(arms: list[Arm], tuning: dict[str, Outcome], bench: LossBench) -> dict[str, dict[str, float]]:
    """The losses of the short runs, by arm and rate."""
    return {
        arm.name: {f"{rate:g}": tuning[f"{arm.name}_lr{rate:g}"].final for rate in bench.learning_rates} for arm in arms
    }


def best_two(losses: dict[str, float]) -> list[float]:
    """The two rates of least loss (or the only one), the best first; a loss that is no number is the worst."""
    return [float(rate) for rate in sorted(losses, key=lambda rate: (math.isnan(losses[rate]), losses[rate]))[:2]]


def untried_neighbours(losses: dict[str, float], grid: list[float]) -> list[float]:
    """The rates of ``grid`` next to the best of ``losses`` that have no loss yet."""
    rates = sorted(grid)
    at = rates.index(best_two(losses)[0])
    return [rate for rate in rates[max(0, at - 1) : at + 2] if f"{rate:g}" not in losses]


def run_name(arm: Arm, rate: float, seed: int) -> str:
    """The folder of one run, as in ``smet_0.1_lr0.001_seed1``."""
    return f"{arm.name}_lr{rate:g}_seed{seed}"


def final_grid(arms: list[Arm], outcomes: dict[str, Outcome], bench: LossBench) -> dict[str, dict[str, float]]:
    """The losses of the first seed's whole runs so far, by arm and rate."""
    return {
        arm.name: {
            f"{rate:g}": outcomes[name].late(bench.last_evaluations)
            for rate in sorted(bench.learning_rates)
            if (name := run_name(arm, rate, bench.seeds[0])) in outcomes
        }
        for arm in arms
    }


def arm_figures(arm: Arm, outcomes: dict[str, Outcome], rate: float, bench: LossBench) -> dict[str, Any]:
    """Losses at the end by seed with mean and standard error, and the mean curve."""
    runs = [outcomes[run_name(arm, rate, seed)] for seed in bench.seeds]
    losses = [run.late(bench.last_evaluations) for run in runs]
    mean, error = mean_and_error(losses)
    return {
        "method": arm.method,
        "density": arm.density,
        "learning_rate": rate,
        "rate_at_grid_edge": rate in (min(bench.learning_rates), max(bench.learning_rates)),
        "tokens": runs[0].tokens,
        "parameters_active": runs[0].parameters_active,
        "final_losses": losses,
        "mean": mean,
        "standard_error": error,
        "curve": {step: sum(run.losses[step] for run in runs) / len(runs) for step in runs[0].losses},
    }


def compare(figures: dict[str, Any], bench: LossBench) -> tuple[list[dict[str, Any]], list[Bar]]:
    """Differences from ``smet``, paired by seed; the bars are its margins over ``set`` and ``static``."""
    comparisons: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for density in bench.densities:
        base = figures.get(f"smet_{density:g}")
        if base is None:
            continue
        for facts in figures.values():
            if facts is base or facts["density"] not in (density, 1.0):
                continue
            pairs = zip(facts["final_losses"], base["final_losses"], strict=True)
            mean, error = mean_and_error([other - own for other, own in pairs])
            margin = mean / error if error > 0 else float("inf")
            comparisons.append(
                {"density": density, "method": facts["method"], "minus_smet": mean, "standard_error": error}
            )
            if facts["method"] in ("set", "static"):
                name = f"density {density:g}: {facts['method']} minus smet, in standard errors"
                bars.append(Bar(name, margin, _ERRORS, margin > _ERRORS))
    return comparisons, bars


def plot(path: Path, figures: dict[str, Any], bench: LossBench) -> None:
    """Mean validation loss by step, one panel a density."""
    panels = []
    for density in bench.densities:
        lines = {
            name: (list(facts["curve"])[1:], list(facts["curve"].values())[1:])
            for name, facts in figures.items()
            if facts["density"] in (density, 1.0)
        }
        panels.append((f"density {density:g}", lines))
    plot_lines(path, panels, "step", "validation loss, nats a token")


def print_tables(
    console: Console,
    figures: dict[str, Any],
    grid: dict[str, dict[str, float]],
    final: dict[str, dict[str, float]],
    comparisons: list[dict[str, Any]],
) -> None:
    """The losses, the grid that each learning rate was chosen on, and the differences from smet."""
    table = Table(title="validation loss, mean ± standard error over seeds", title_justify="left")
    for column in ("arm", "active parameters", "learning rate", "loss"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, facts in figures.items():
        loss = f"{facts['mean']:.4f} ± {facts['standard_error']:.4f}"
        rate = f"{facts['learning_rate']:g}{' (edge of the grid)' if facts['rate_at_grid_edge'] else ''}"
        table.add_row(name, f"{facts['parameters_active']:,}", rate, loss)
    console.print(table)
    rates = Table(title="learning-rate grid: validation loss of the short runs", title_justify="left")
    rates.add_column("arm")
    for rate in (*next(iter(grid.values())), "whole runs"):
        rates.add_column(rate, justify="right")
    for name, losses in grid.items():
        whole = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in final[name].items())
        rates.add_row(name, *(f"{loss:.4f}" for loss in losses.values()), whole)
    console.print(rates)
    for entry in comparisons:
        console.print(
            f"density {entry['density']:g}: {entry['method']} minus smet {entry['minus_smet']:+.4f} "
            f"± {entry['standard_error']:.4f}"
        )
