"""The spike, attributed: what one topology update does to the loss, by what happens to the weights that it grows.

One run is trained without any update (arm ``none``). Every ``topology.interval`` steps three arms branch off from its
state, make the same update, and train on the batches that the run itself trains on next:

    drop   the weights of least magnitude go, the grown ones stay at zero: the price of dropping alone
    naive  grown weights train under the run's step count, as in plain Adam (SET)
    smet   grown weights train with local steps and regrowth warm-up

Directly after an update the three are the same model, so the excess of an arm is its loss minus that of ``drop``.
Before each branch no weight is cold, so nothing but the update under measurement differs between the arms. Dropout, if
there is any, drops the same in all arms: it is drawn anew at each step, from the step's number.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from smet_train.bench.plots import plot_lines
from smet_train.bench.result import Bar, write_result
from smet_train.bench.settings import SpikeBench
from smet_train.bench.statistics import confidence_interval, mean_and_error
from smet_train.build import build_run
from smet_train.build_data import build_data
from smet_train.config.plain import to_dict
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.sparse.ledger import count_parameters, sparse_layers
from smet_train.sparse.sampling import stream_key
from smet_train.tracking.console import open_console
from smet_train.train.evaluate import mean_loss
from smet_train.train.loop import clip_gradients, set_learning_rate
from smet_train.train.run import Run
from smet_train.train.signals import StopRequest
from smet_train.train.state import model_tensors, restore_model
from smet_train.train.step import forward_backward

ARMS = ("none", "drop", "naive", "smet")
_BASELINE_STEPS = 10
PEAK_BAR = 0.15  # of the naive arm's mean peak excess
_ERRORS = 2.0  # standard errors that count as noise


@dataclass(frozen=True, slots=True)
class Curves:
    """Losses of one arm around one update, nats a token.

    ``train[k]`` is the loss of the k-th batch after the update (from 0 on, before that batch's step), ``probe[k]`` that
    of the fixed probe batch after k steps, ``before`` the training losses of the run up to the update.
    """

    before: list[float]
    train: list[float]
    probe: list[float]


def run_spike(config: Config, bench: SpikeBench, command: str) -> None:
    """The whole benchmark: train, measure, print, and write ``result.json`` and ``spike.png`` into ``bench.out``.

    Raises:
        ConfigError: if the settings leave nothing to measure.
    """
    check_settings(config, bench)
    console = open_console()
    out = Path(bench.out)
    config.train.steps = bench.warm_steps + bench.updates * config.topology.interval + 1
    (out / "run").mkdir(parents=True, exist_ok=True)
    data = build_data(config, None)
    run = build_run(config, out / "run", data, StopRequest())
    probe = data.validation[config.train.eval_windows :]
    try:
        curves = measure_spikes(
            run,
            probe,
            warm_steps=bench.warm_steps,
            updates=bench.updates,
            horizon_steps=config.tracking.spike_horizon_steps,
            say=lambda line: console.print(line, soft_wrap=True),
        )
    finally:
        data.batches.close()
        run.tracker.close()
    figures, bars = analyse(curves)
    active, dense_equivalent = count_parameters(run.model)
    facts = {
        "parameters_active": active,
        "parameters_dense_equivalent": dense_equivalent,
        "beta2": config.optimizer.betas[1],
        "arms": figures,
        "curves": {arm: [asdict(one) for one in ones] for arm, ones in curves.items()},
        "config": to_dict(config),
    }
    path = write_result(out, "spike", bars, facts, command)
    _plot(out / "spike.png", figures)
    _print(console, figures, bars)
    console.print(f"figures {path}, plot {out / 'spike.png'}", soft_wrap=True)


def check_settings(config: Config, bench: SpikeBench) -> None:
    """Raises ConfigError if updates overlap or are never due, or if the arms would not differ by them alone."""
    if bench.warm_steps % config.topology.interval:
        raise ConfigError(
            f"bench.warm_steps={bench.warm_steps} is no multiple of topology.interval={config.topology.interval}, "
            f"so no update would be due; write bench.warm_steps="
            f"{(bench.warm_steps // config.topology.interval + 1) * config.topology.interval}"
        )
    if config.topology.interval < config.tracking.spike_horizon_steps:
        raise ConfigError(
            f"topology.interval={config.topology.interval} is shorter than tracking.spike_horizon_steps="
            f"{config.tracking.spike_horizon_steps}: the next update would fall into the window; raise the interval"
        )
    if config.tracking.probe_windows == 0:
        raise ConfigError(
            "tracking.probe_windows=0 leaves no probe batch; write for instance tracking.probe_windows=16"
        )
    if not (config.sparsity.enabled and config.topology.enabled and config.optimizer.local_step):
        raise ConfigError(f"method={config.method} can't be compared with itself; leave method=smet")
    if config.topology.grow.name != "random" or config.topology.drop.name == "magnitude_and_gradient":
        raise ConfigError(
            "smet-bench spike makes updates without a gradient to look at; write topology.grow=random and another "
            "topology.drop than magnitude_and_gradient"
        )
    if config.topology.stop_at < 1:
        raise ConfigError(
            f"topology.stop_at={config.topology.stop_at:g} would leave the later updates out; write topology.stop_at=1"
        )


def _plot(path: Path, figures: dict[str, Any]) -> None:
    steps = list(range(len(figures["none"]["mean_probe"])))
    losses = {arm: (steps, figures[arm]["mean_probe"]) for arm in ARMS}
    excess = {arm: (steps, figures[arm]["mean_excess"]) for arm in ARMS}
    plot_lines(
        path,
        [("mean probe loss", losses), ("excess over the drop-only arm", excess)],
        "steps after the topology update",
        "nats a token",
    )


def _print(console: Console, figures: dict[str, Any], bars: list[Bar]) -> None:
    table = Table(title="one topology update, mean and 95 % interval, nats a token", title_justify="left")
    table.add_column("arm")
    for column in ("peak excess over drop (probe)", "train-loss peak over no update", "probe jump at the update"):
        table.add_column(column, justify="right")
    for arm, facts in figures.items():
        table.add_row(
            arm, *(_cell(facts[key]) for key in ("peak_excess", "train_peak_over_none", "probe_jump_over_none"))
        )
    console.print(table)
    for bar in bars:
        verdict = "holds" if bar.holds else "does not hold"
        console.print(f"{bar.name}: {bar.value:.3f} against {bar.bar:g}: {verdict}", soft_wrap=True)


def _cell(figure: dict[str, Any]) -> str:
    low, high = figure["interval_95"]
    return f"{figure['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def measure_spikes(
    run: Run, probe: Tensor, *, warm_steps: int, updates: int, horizon_steps: int, say: Callable[[str], None]
) -> dict[str, list[Curves]]:
    """Train ``run`` and branch off at each of ``updates`` updates; the curves of each arm, one entry an update.

    ``run`` must keep ages: a topology that moves, under an optimizer with local steps or warm-up.
    """
    interval = run.topology.schedule.interval if run.topology.schedule else 0
    assert interval >= horizon_steps, "validated by the command"
    curves: dict[str, list[Curves]] = {arm: [] for arm in ARMS}
    recent: list[float] = []
    for number in range(warm_steps):
        recent.append(_step(run, [next(run.batches) for _ in range(run.settings.micro_batches)]))
        if (number + 1) % 50 == 0:
            say(f"step {number + 1}/{warm_steps} before the first update, loss {recent[-1]:.4f}")
    for number in range(updates):
        batches = [[next(run.batches) for _ in range(run.settings.micro_batches)] for _ in range(interval)]
        before = recent[-_BASELINE_STEPS:]
        state = _keep(run)
        for arm in ("drop", "naive", "smet"):
            train, probed = _branch(run, arm, batches[:horizon_steps], probe)
            curves[arm].append(Curves(before, train, probed))
            _return(run, state)
        train, probed = _advance(run, batches, probe, horizon_steps)
        curves["none"].append(Curves(before, train[:horizon_steps], probed))
        recent += train
        peaks = ", ".join(f"{arm} {max(_excess(curves, arm)[-1]):+.4f}" for arm in ("naive", "smet"))
        say(f"update {number + 1}/{updates} after step {state.step}: peak excess {peaks}")
    return curves


@dataclass(frozen=True, slots=True)
class _State:
    """A copy of everything that an arm changes."""

    step: int
    model: dict[str, Tensor]
    optimizer: tuple[dict[str, Tensor], dict[str, Any]]
    topology: tuple[dict[str, Any], dict[str, Tensor]]


def _names(run: Run) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in run.model.named_parameters()}


def _keep(run: Run) -> _State:
    tensors, plain = run.optimizer.state_for_checkpoint(_names(run))
    return _State(
        run.state.step,
        {name: tensor.clone() for name, tensor in model_tensors(run.model).items()},
        ({name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(plain)),
        (run.topology.state_dict(), {name: bits.clone() for name, bits in run.topology.tensors().items()}),
    )


def _return(run: Run, state: _State) -> None:
    restore_model(run.model, state.model)
    tensors, plain = state.optimizer
    run.optimizer.restore(_names(run), tensors, copy.deepcopy(plain))
    run.topology.load_state_dict(*state.topology)
    run.state.step = state.step


def _branch(run: Run, arm: str, batches: list[list[Tensor]], probe: Tensor) -> tuple[list[float], list[float]]:
    """Make the update and train; ``naive`` differs from ``smet`` in two switches of the optimizer alone."""
    groups = [group for group in run.optimizer.param_groups if group["role"] == "sparse"]
    switches = [(group["local_step"], group["regrow_warmup_steps"]) for group in groups]
    if arm == "naive":
        for group in groups:
            group["local_step"], group["regrow_warmup_steps"] = False, 0
    run.topology.step(run.state.step)
    frozen = _grown(run) if arm == "drop" else {}
    train, probed = [], [_probe(run, probe)]
    for batch in batches:
        train.append(_step(run, batch, frozen))
        probed.append(_probe(run, probe))
    for group, (local_step, warmup_steps) in zip(groups, switches, strict=True):
        group["local_step"], group["regrow_warmup_steps"] = local_step, warmup_steps
    return train, probed


def _advance(
    run: Run, batches: list[list[Tensor]], probe: Tensor, horizon_steps: int
) -> tuple[list[float], list[float]]:
    """The run itself goes on to the next update; the probe is read for as long as the arms are."""
    train, probed = [], [_probe(run, probe)]
    for number, batch in enumerate(batches):
        train.append(_step(run, batch))
        if number < horizon_steps:
            probed.append(_probe(run, probe))
    return train, probed


def _grown(run: Run) -> dict[Tensor, Tensor]:
    """For each layer's values, True at the slots that the last update grew: those of age 0."""
    return {layer.values: run.optimizer.state[layer.values]["age"] == 0 for layer in sparse_layers(run.model).values()}


def _step(run: Run, batch: list[Tensor], frozen: dict[Tensor, Tensor] | None = None) -> float:
    """One optimizer step; ``frozen`` slots get no gradient and, their moments being zero, stay where they are."""
    torch.manual_seed(stream_key(run.topology.seed, "spike", run.state.step, "dropout") % 2**63)
    loss = forward_backward(run.loss, iter(batch), len(batch), run.device)
    for values, slots in (frozen or {}).items():
        assert values.grad is not None
        values.grad.masked_fill_(slots, 0)
    clip_gradients(run)
    set_learning_rate(run)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.state.step += 1
    return loss


@torch.no_grad()
def _probe(run: Run, probe: Tensor) -> float:
    return mean_loss(run.model, probe, run.settings.micro_batch_size, run.settings.precision)


def _excess(curves: dict[str, list[Curves]], arm: str) -> list[list[float]]:
    """Probe loss minus the drop arm's, an entry an update."""
    pairs = zip(curves[arm], curves["drop"], strict=True)
    return [[own - base for own, base in zip(one.probe, drop.probe, strict=True)] for one, drop in pairs]


def analyse(curves: dict[str, list[Curves]]) -> tuple[dict[str, Any], list[Bar]]:
    """Figures of each arm, and the bars that SMET's claim is held against."""
    figures: dict[str, Any] = {}
    for arm in ARMS:
        peaks = [max(excess) for excess in _excess(curves, arm)]
        spikes = [max(one.train) - sum(one.before) / len(one.before) for one in curves[arm]]
        paired = [max(own.train) - max(none.train) for own, none in zip(curves[arm], curves["none"], strict=True)]
        jumps = [one.probe[0] - none.probe[0] for one, none in zip(curves[arm], curves["none"], strict=True)]
        figures[arm] = {
            "peak_excess": _figures(peaks),
            "train_spike": _figures(spikes),
            "train_peak_over_none": _figures(paired),
            "probe_jump_over_none": _figures(jumps),
            "mean_probe": [sum(at) / len(at) for at in zip(*(one.probe for one in curves[arm]), strict=True)],
            "mean_excess": [sum(at) / len(at) for at in zip(*_excess(curves, arm), strict=True)],
        }
    naive, smet = figures["naive"]["peak_excess"]["mean"], figures["smet"]["peak_excess"]["mean"]
    naive_error = figures["naive"]["peak_excess"]["standard_error"]
    noise = figures["smet"]["train_peak_over_none"]
    ratio = _ratio(smet, naive)
    bars = [
        Bar(
            "naive mean peak excess, in standard errors",
            _ratio(naive, naive_error),
            _ERRORS,
            naive > _ERRORS * naive_error,
        ),
        Bar("smet mean peak excess / naive mean peak excess", ratio, PEAK_BAR, ratio <= PEAK_BAR),
        Bar(
            "smet train-loss peak over the no-update arm's, in standard errors",
            _ratio(noise["mean"], noise["standard_error"]),
            _ERRORS,
            noise["mean"] <= _ERRORS * noise["standard_error"],
        ),
    ]
    return figures, bars


def _ratio(part: float, whole: float) -> float:
    """``part / whole``; infinite where ``whole`` is not above zero, so that no bar holds by it."""
    return part / whole if whole > 0 else float("inf")


def _figures(samples: list[float]) -> dict[str, Any]:
    mean, error = mean_and_error(samples)
    low, high = confidence_interval(samples)
    return {"mean": mean, "standard_error": error, "interval_95": [low, high], "samples": samples}
