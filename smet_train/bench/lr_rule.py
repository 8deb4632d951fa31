"""Which learning-rate rule moves the best base rate least when the density changes.

SMET's rule is 1/sqrt(d) as the paper is reported and 1/d in its authors' scripts. A rule is good if a rate found at one
density is right at another, so what is compared is the spread of the best base rate over densities. The best rate of a
density is the vertex of a parabola through the best point of the grid and its neighbours, in the logarithm of the rate.
"""

import math
from pathlib import Path
from statistics import pstdev
from typing import Any

from rich.console import Console
from rich.table import Table

from smet_train.bench.jobs import Outcome, run_jobs
from smet_train.bench.loss import Compose
from smet_train.bench.plots import plot_lines
from smet_train.bench.result import Bar, write_result
from smet_train.bench.settings import LrRuleBench
from smet_train.config.schema import Config
from smet_train.tracking.console import open_console


def run_lr_rule(compose: Compose, bench: LrRuleBench, command: str) -> None:
    """The whole benchmark: train the grid, print, and write ``result.json`` and ``lr_rule.png`` into ``bench.out``."""
    console = open_console()
    out = Path(bench.out)
    jobs = grid_jobs(compose, bench)
    outcomes = run_jobs(jobs, out / "runs", bench.workers, lambda line: console.print(line, soft_wrap=True))
    figures = rule_figures(outcomes, bench)
    default = compose([]).optimizer.lr_density_rule.name
    spreads = {rule: facts["spread_decades"] for rule, facts in figures.items()}
    least = min(spreads, key=lambda rule: spreads[rule])
    bars = [
        Bar(
            f"spread of the best base rate under the default rule {default}, against the least, {least}",
            spreads.get(default, math.inf),
            spreads[least],
            default == least,
        )
    ]
    path = write_result(out, "lr_rule", bars, {"rules": figures}, command)
    _plot(out / "lr_rule.png", figures)
    _print(console, figures)
    console.print(f"figures {path}, plot {out / 'lr_rule.png'}", soft_wrap=True)


def job_name(rule: str, density: float, rate: float, seed: int) -> str:
    """At density 1 all rules are the same, and trained once."""
    return f"{rule if density < 1 else 'any'}_d{density:g}_lr{rate:g}_seed{seed}"


def grid_jobs(compose: Compose, bench: LrRuleBench) -> dict[str, Config]:
    """Every rule at every density, base rate and seed."""
    jobs: dict[str, Config] = {}
    for rule in bench.rules:
        for density in bench.densities:
            for rate in bench.learning_rates:
                for seed in bench.seeds:
                    settings = [f"optimizer.lr_density_rule={rule}", f"sparsity.density={density}"]
                    name = job_name(rule, density, rate, seed)
                    jobs.setdefault(name, compose([*settings, f"optimizer.lr={rate}", f"seed={seed}"]))
    return jobs


def rule_figures(outcomes: dict[str, Outcome], bench: LrRuleBench) -> dict[str, Any]:
    """Per rule: the losses, the best base rate at each density, and the spread of those in decades."""
    figures: dict[str, Any] = {}
    for rule in bench.rules:
        losses: dict[str, dict[str, float]] = {}
        best: dict[str, float] = {}
        for density in bench.densities:
            row = {}
            for rate in bench.learning_rates:
                finals = [outcomes[job_name(rule, density, rate, seed)].final for seed in bench.seeds]
                row[f"{rate:g}"] = sum(finals) / len(finals)
            losses[f"{density:g}"] = row
            best[f"{density:g}"] = best_rate(bench.learning_rates, list(row.values()))
        spread = pstdev(math.log10(rate) for rate in best.values())
        figures[rule] = {"losses": losses, "best_rate": best, "spread_decades": spread}
    return figures


def best_rate(rates: list[float], losses: list[float]) -> float:
    """The vertex of the parabola through the least loss and its neighbours over log(rate); at an edge, the edge."""
    at = min(range(len(losses)), key=lambda i: losses[i])
    if at in (0, len(losses) - 1):
        return rates[at]
    (x0, x1, x2), (y0, y1, y2) = ([math.log(rate) for rate in rates[at - 1 : at + 2]], losses[at - 1 : at + 2])
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * curvature)) if curvature > 0 else rates[at]


def _plot(path: Path, figures: dict[str, Any]) -> None:
    panels = []
    for rule, facts in figures.items():
        lines = {
            f"density {density}": ([math.log10(float(rate)) for rate in row], list(row.values()))
            for density, row in facts["losses"].items()
        }
        panels.append((f"rule {rule}", lines))
    plot_lines(path, panels, "log10 of the base learning rate", "validation loss, nats a token")


def _print(console: Console, figures: dict[str, Any]) -> None:
    for rule, facts in figures.items():
        title = f"rule {rule}: the best base rate spreads over {facts['spread_decades']:.3f} decades"
        table = Table(title=title, title_justify="left")
        table.add_column("density")
        rates = list(next(iter(facts["losses"].values())))
        for rate in (*rates, "best"):
            table.add_column(rate, justify="right")
        for density, row in facts["losses"].items():
            table.add_row(density, *(f"{loss:.4f}" for loss in row.values()), f"{facts['best_rate'][density]:.2e}")
        console.print(table)
