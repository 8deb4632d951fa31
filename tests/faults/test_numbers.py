"""NaN and infinity in the loss, a gradient, a moment or a weight: none reaches a checkpoint, and kills stay exact."""

import hashlib
import json
import math
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from smet_train.config.schema import Config
from smet_train.data.loader import BatchLoader
from smet_train.errors import DataError
from smet_train.optim import SmetAdamW
from smet_train.tracking.jsonl import read_events
from smet_train.train import loop
from smet_train.train import step as step_module
from smet_train.train.checkpoint import checkpoint_steps
from tests.faults.trials import KillInSave, difference, output, run

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
STEPS = 12
PLACES = ("loss", "gradient", "moment", "weight")
POLICIES = {
    "passed over": ["train.max_bad_steps=2", "train.max_rollbacks=3"],
    "rolled back": ["train.max_bad_steps=0", "train.max_rollbacks=3"],
    "stopped": ["train.max_bad_steps=0", "train.max_rollbacks=0"],
}
# After a step that went through, only going back helps against a bad moment or weight.
SKIPPABLE = ("loss", "gradient")


def name_of(batch: Tensor) -> str:
    return hashlib.sha256(batch.numpy().tobytes()).hexdigest()


class NoteBatches:
    """Writes down which micro-batches a run trains on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        real = step_module.token_loss

        def note(model: nn.Module, batch: Tensor, precision: str) -> Tensor:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(name_of(batch) + "\n")
            return real(model, batch, precision)

        step_module.token_loss = note  # type: ignore[assignment]


class Poison:
    """Puts ``bad`` into ``place`` whenever the micro-batch ``batch`` is trained on: as often as that is."""

    def __init__(self, place: str, bad: float, batch: str, seed: float) -> None:
        self.place = place
        self.bad = bad
        self.batch = batch
        self.seed = seed

    def __call__(self) -> None:
        real, kept = step_module.token_loss, []
        make = SmetAdamW.__init__

        def keep(optimizer: SmetAdamW, *arguments: Any, **named: Any) -> None:
            make(optimizer, *arguments, **named)
            kept.append(optimizer)

        def poisoned(model: nn.Module, batch: Tensor, precision: str) -> Tensor:
            if name_of(batch) != self.batch:
                return real(model, batch, precision)
            parameters = list(model.parameters())
            parameter = parameters[int(self.seed * len(parameters))]
            if self.place == "weight":
                self._spoil(parameter)
            elif self.place == "moment":
                self._spoil(kept[-1].state[parameter]["exp_avg"])
            elif self.place == "gradient":
                self._spoil_gradient(parameter)
            loss = real(model, batch, precision)
            return loss * self.bad if self.place == "loss" else loss

        SmetAdamW.__init__ = keep  # type: ignore[assignment,method-assign]
        step_module.token_loss = poisoned  # type: ignore[assignment]

    def _spoil_gradient(self, parameter: Tensor) -> None:
        def spoil(gradient: Tensor) -> Tensor:
            hook.remove()
            return self._spoil(gradient.clone())

        hook = parameter.register_hook(spoil)

    @torch.no_grad()
    def _spoil(self, tensor: Tensor) -> Tensor:
        tensor.view(-1)[int(self.seed * tensor.numel())] = self.bad
        return tensor


@pytest.fixture(scope="module")
def configure(quick_config: QuickConfig) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        return quick_config(
            "model.layers=1",
            "model.intermediate_size=64",
            f"train.steps={STEPS}",
            "checkpoint.interval=3",
            "checkpoint.keep=10",
            "topology.interval=4",
            *overrides,
        )

    return make


@pytest.fixture(scope="module")
def batches(configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The micro-batches of 14 steps, two in each, whatever rules a run follows."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(configure("train.steps=14"), folder, NoteBatches(folder / "batches.txt")) == 0, output(folder)
    return (folder / "batches.txt").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("policy", POLICIES)
def test_bad_numbers_reach_no_checkpoint(
    configure: Callable[..., Config], batches: list[str], tmp_path: Path, campaign: Any, policy: str
) -> None:
    config = configure(*POLICIES[policy])
    with campaign("NaN or infinity: none in a checkpoint, kills around it exact", part=policy) as tally:
        for draw in tally.draws(few=1, every=20):
            place = PLACES[(tally.tried + list(POLICIES).index(policy)) % len(PLACES)]
            bad = draw.choice([math.nan, math.inf, -math.inf])
            # not before the first checkpoint, which there must be to go back to
            poison = Poison(place, bad, draw.choice(batches[2 * 3 : 2 * (STEPS - 1)]), draw.random())
            wrong = met(config, tmp_path / f"{tally.tried}", policy, place, poison, draw)
            tally.note(wrong and f"{place} {bad}: {wrong}")


def met(config: Config, folder: Path, policy: str, place: str, poison: Poison, draw: Random) -> str | None:
    """What is wrong with how a run meets bad numbers, and with how it goes on when it is killed meanwhile, if any."""
    status = run(config, folder, poison)
    incidents = [json.loads(line) for line in (folder / "incidents.jsonl").read_text(encoding="utf-8").splitlines()]
    actions = [incident["action"].split()[0] for incident in incidents if "topology" not in incident["what"]]
    for checkpoint in (folder / "checkpoints").iterdir():
        if not is_finite(checkpoint):
            return f"{checkpoint} is not finite"
    if policy == "stopped":
        if status != 1 or "the newest checkpoint. The bad state is kept in" not in output(folder):
            return f"it exits with {status}: {output(folder)}"
        return None if actions == ["ending"] else str(actions)
    if status != 0:
        return output(folder)
    passes, goes_back = actions.count("passed"), actions.count("going")
    if policy == "passed over" and place in SKIPPABLE and (passes, goes_back) != (1, 0):
        return str(actions)
    if not (policy == "passed over" and place in SKIPPABLE) and goes_back != 1:
        return str(actions)
    end = read_events(folder / "metrics.jsonl")[-1]
    if (end["event"], end["reason"], end["step"], end["rollbacks"]) != ("end", "finished", STEPS, goes_back):
        return str(end)
    killed = folder / "killed"
    if run(config, killed, poison, KillInSave(draw.randint(1, 4), draw.random())) not in (0, -signal.SIGKILL):
        return output(killed)
    if run(config, killed, poison) != 0:
        return output(killed)
    return difference(killed, folder, STEPS)


def is_finite(checkpoint: Path) -> bool:
    tensors = [tensor for file in checkpoint.glob("*.safetensors") for tensor in load_file(file).values()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())


class PoisonAndStop(Poison):
    """A signal comes while the spoilt batch is computed."""

    def __call__(self) -> None:
        super().__call__()
        poisoned = step_module.token_loss

        def stopped(model: nn.Module, batch: Tensor, precision: str) -> Tensor:
            if name_of(batch) == self.batch:
                os.kill(os.getpid(), signal.SIGTERM)
            return poisoned(model, batch, precision)

        step_module.token_loss = stopped  # type: ignore[assignment]


class PoisonAndEnd(Poison):
    """After the spoilt batch the source fails."""

    def __call__(self) -> None:
        super().__call__()
        poisoned, peek, over = step_module.token_loss, BatchLoader.peek, False

        def ends(model: nn.Module, batch: Tensor, precision: str) -> Tensor:
            nonlocal over
            over = over or name_of(batch) == self.batch
            return poisoned(model, batch, precision)

        def read(loader: BatchLoader, n_batches: int, timeout_s: float | None = None) -> list[Tensor]:
            # what was read ahead is handed out: the rest of the spoilt batch
            if over and len(loader._peeked) < n_batches:
                raise DataError("the disk has gone", exit_status=1)
            return peek(loader, n_batches, timeout_s)

        step_module.token_loss = ends  # type: ignore[assignment]
        BatchLoader.peek = read  # type: ignore[assignment,method-assign]


# Step 5 is the first after a topology update, inside the windows of the spikes; the checkpoint before it is of step 3.
AROUND = ["train.max_bad_steps=1", "tracking.probe_windows=2", "tracking.spike_horizon_steps=3"]


@pytest.fixture(scope="module")
def passed_over(
    configure: Callable[..., Config], batches: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The folder of a run that has passed over a step and was not stopped."""

    @cache
    def make(step: int) -> Path:
        folder = tmp_path_factory.mktemp("passed_over") / "run"
        poison = Poison("loss", math.nan, batches[2 * (step - 1)], 0.0)
        assert run(configure(*AROUND), folder, poison) == 0, output(folder)
        return folder

    return make


@pytest.mark.parametrize("step", [5, 6])
@pytest.mark.parametrize("how", [PoisonAndStop, PoisonAndEnd])
def test_a_run_that_ends_when_a_batch_was_passed_over_goes_on_behind_it(
    configure: Callable[..., Config],
    batches: list[str],
    passed_over: Callable[[int], Path],
    tmp_path: Path,
    how: type[Poison],
    step: int,
) -> None:
    config, folder = configure(*AROUND), tmp_path / "stopped"
    poison = how("loss", math.nan, batches[2 * (step - 1)], 0.0)
    assert run(config, folder, poison) == (0 if how is PoisonAndStop else 1), output(folder)
    assert checkpoint_steps(folder / "checkpoints")[-1] == step - 1
    assert run(config, folder) == 0, output(folder)
    assert difference(folder, passed_over(step), STEPS) is None
    (line,) = (folder / "incidents.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["action"] == "passed over"


def test_bad_steps_before_and_after_a_stop_are_in_a_row(
    configure: Callable[..., Config], batches: list[str], tmp_path: Path
) -> None:
    config, folder = configure(*AROUND), tmp_path / "stopped"
    first, second = batches[8:12:2]
    assert run(config, folder, PoisonAndStop("loss", math.nan, first, 0.0)) == 0, output(folder)
    assert run(config, folder, Poison("loss", math.nan, second, 0.0)) == 0, output(folder)
    lines = (folder / "incidents.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["action"] for line in lines] == [
        "passed over",
        "going back to step_00000004, with the data from here on",
    ]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(
    configure: Callable[..., Config], batches: list[str], tmp_path: Path
) -> None:
    config = configure("train.max_bad_steps=0")
    assert run(config, tmp_path / "bad", Poison("loss", math.nan, batches[0], 0.0)) == 1
    assert "step 1: the loss is nan, and there is no checkpoint to go back to; lower optimizer.lr" in output(
        tmp_path / "bad"
    )
    assert checkpoint_steps(tmp_path / "bad" / "checkpoints") == []
    assert checkpoint_steps(tmp_path / "bad" / "inspect") == [0]


def test_a_fused_step_that_was_half_done_goes_back(configure: Callable[..., Config], tmp_path: Path) -> None:
    fused = ["train.fused_backward_step=true", "optimizer.grad_clip=0", "train.micro_batch_size=4"]
    config, seen = configure(*fused), tmp_path / "batches.txt"
    assert run(config, tmp_path / "whole", NoteBatches(seen)) == 0, output(tmp_path / "whole")
    batch = seen.read_text(encoding="utf-8").split()[6]
    for seed, action in ((0.0, "going back to step_00000006"), (0.9999, "passed over")):
        # the first parameter is updated last in the backward pass, the last one first
        folder = tmp_path / str(seed)
        assert run(config, folder, Poison("gradient", math.inf, batch, seed)) == 0, output(folder)
        (line,) = (folder / "incidents.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["action"].startswith(action)


class PoisonProbe(Poison):
    """Spoils the loss that a topology update looks at too."""

    def __call__(self) -> None:
        super().__call__()
        vars(loop)["token_loss"] = step_module.token_loss


@pytest.mark.parametrize(
    "rules",
    [
        ["topology.grow=gradient"],
        ["topology.drop=magnitude_and_gradient"],
        ["topology.grow=gradient", "topology.drop=magnitude_and_gradient", "topology.probe_steps=2"],
    ],
    ids=lambda rules: " ".join(rules),
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_topology_stays_where_its_gradient_is_not_finite(
    configure: Callable[..., Config], batches: list[str], tmp_path: Path, rules: list[str], bad: float
) -> None:
    """In the first batch of step 5, before which the topology would move; also killed around it."""
    config = configure(*rules)
    poison = PoisonProbe("loss", bad, batches[2 * 4], 0.0)
    folder, killed = tmp_path / "bad", tmp_path / "killed"
    assert run(config, folder, poison) == 0, output(folder)
    incidents = [json.loads(line) for line in (folder / "incidents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["action"]) for line in incidents] == [
        (5, "the topology stays as it is"),
        (5, "passed over"),
    ]
    assert incidents[0]["what"].startswith("the gradient that the topology update looks at is not finite (layer model.")
    moves = [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "topology"]
    assert [(move["step"], move["dropped"] > 0, move["grown"] > 0) for move in moves] == [
        (4, False, False),
        (8, True, True),
    ]
    # the second save is after the update
    assert run(config, killed, poison, KillInSave(2, 0.5)) in (0, -signal.SIGKILL)
    assert run(config, killed, poison) == 0, output(killed)
    assert difference(killed, folder, STEPS) is None


@pytest.mark.parametrize("method", ["smet", "gmp"])
def test_a_weight_that_went_bad_before_the_topology_moves_goes_back(
    configure: Callable[..., Config], batches: list[str], tmp_path: Path, method: str
) -> None:
    config = configure(f"method={method}", "train.max_bad_steps=1")
    # the last batch of step 4, and a parameter of a sparse layer
    poison = Poison("moment", math.nan, batches[2 * 4 - 1], 0.2)
    assert run(config, tmp_path / "bad", poison) == 0, output(tmp_path / "bad")
    lines = (tmp_path / "bad" / "incidents.jsonl").read_text(encoding="utf-8").splitlines()
    actions = [json.loads(line)["action"] for line in lines]
    assert actions[:2] == ["the topology stays as it is", "passed over"]
    assert actions[2].startswith("going back to step_00000003")


def test_a_rise_of_the_loss_is_passed_over(
    configure: Callable[..., Config], batches: list[str], tmp_path: Path
) -> None:
    config = configure("train.max_loss_rise=2", "train.steps=14")
    assert run(config, tmp_path / "risen", Poison("loss", 3.0, batches[-1], 0.0)) == 0, output(tmp_path / "risen")
    (line,) = (tmp_path / "risen" / "incidents.jsonl").read_text(encoding="utf-8").splitlines()
    assert "more than train.max_loss_rise=2 above" in json.loads(line)["what"]
