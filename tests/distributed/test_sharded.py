"""Processes that hold a part of the state each train what one process trains, and go on from any other's checkpoint."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.tracking.jsonl import read_events
from smet_train.train import loop, step
from smet_train.train.checkpoint import load_checkpoint
from smet_train.train.processes import Processes
from smet_train.train.run import Run
from smet_train.train.sharded_gradients import ShardedGradients
from tests.distributed.ranks import (
    FOUR,
    LONG,
    LONG_STEPS,
    apart,
    die_in_step,
    end,
    in_double_precision,
    losses,
    patched,
    said,
    start,
    stop_after,
    train,
    weights,
)
from tests.faults.trials import digest

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
FSDP = "train.parallel=fsdp"
LAYOUTS = {"one": (1, "ddp"), "ddp 2": (2, "ddp"), "fsdp 2": (2, "fsdp"), "fsdp 4": (4, "fsdp")}


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(folder / "metrics.jsonl") if event["event"] == kind]


def test_in_single_precision_to_rounding(quick_config: QuickConfig, tmp_path: Path) -> None:
    alone, four = tmp_path / "1", tmp_path / "4"
    for size, folder in ((1, alone), (4, four)):
        train(quick_config(*LONG, *FOUR, FSDP), folder, size)
    assert losses(four) == pytest.approx(losses(alone), rel=1e-6)
    assert losses(four, "eval") == pytest.approx(losses(alone, "eval"), rel=1e-6)
    assert apart(weights(four, LONG_STEPS), weights(alone, LONG_STEPS)) < 3e-5


def test_in_double_precision_to_a_ten_billionth(quick_config: QuickConfig, tmp_path: Path) -> None:
    for size in (1, 2, 4):
        train(quick_config(*LONG, *FOUR, FSDP), tmp_path / str(size), size, in_double_precision)
    for size in (2, 4):
        folder = tmp_path / str(size)
        assert losses(folder) == pytest.approx(losses(tmp_path / "1"), abs=1e-10)
        assert apart(weights(folder, LONG_STEPS), weights(tmp_path / "1", LONG_STEPS)) < 1e-10
        assert len(events(folder, "topology")) == 5
        assert held_bytes(folder) <= 1.05 * held_bytes(tmp_path / "1") / size


def held_bytes(folder: Path) -> int:
    """Of all kinds: values, gradients, moments, ages, index, sites ever active, and what is dense."""
    [memory] = events(folder, "memory")
    held = {row["kind"]: row["bytes"] for row in memory["kinds"]}  # type: ignore[attr-defined]
    assert {"values", "gradients", "moments", "ages", "index", "exploration", "dense rest: parameters"} < held.keys()
    return sum(held.values())


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=dense",),
        ("model.family=gpt2", "model.tie_embeddings=true", "sparsity.block_size=16"),
        (
            "train.activation_checkpointing=true",
            "sparsity.backend=csr",
            "tracking.map_layer=*.k_proj",
            "tracking.probe_windows=3",
            "train.eval_windows=5",
        ),
        ("train.precision=bf16_mixed", "optimizer.regrow_moments=keep", "optimizer.local_step=false"),
        ("train.precision=bf16",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_kind_of_run(quick_config: QuickConfig, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = quick_config("train.micro_batch_size=1", FSDP, *overrides)
    exact = config.train.precision.name == "fp32"
    for size in (1, 2):
        train(config, tmp_path / str(size), size, *([in_double_precision] if exact else []))
    one, two = tmp_path / "1", tmp_path / "2"
    for kind in ("train", "eval"):
        assert losses(two, kind) == pytest.approx(losses(one, kind), abs=1e-10 if exact else 1e-2)
    if not exact:
        return
    assert apart(weights(two, 6), weights(one, 6)) < 1e-10
    moves = [[{**event, "sent_bytes": 0} for event in events(folder, "topology")] for folder in (one, two)]
    assert moves[0] == moves[1]  # ages of all slots among them, and sites ever active
    assert events(one, "topology_map") == events(two, "topology_map")


# What a process has done last gloo writes down without a lock. These have names of at most 15 letters there, which need
# no memory of their own; of ALLGATHER_COALESCED, to which DTensor.full_tensor comes, two threads can free it at once.
NAMED_IN_PLACE = {
    "c10d::_allgather_base_",
    "c10d::_reduce_scatter_base_",
    "c10d::allgather_",
    "c10d::allreduce_",
    "c10d::broadcast_",
    "c10d::gather_",
    "c10d::reduce_",
    "c10d::scatter_",
    "_c10d_functional::_wrap_tensor_autograd",
    "_c10d_functional::all_reduce",
    "_c10d_functional::wait_tensor",
}


def write_down_operations() -> None:
    """Names of all operations over processes, in the run folder."""

    def watched(run: Run) -> str:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            reason = loop.train(run)
        assert profile.profiler is not None
        assert profile.profiler.kineto_results is not None
        names = {event.name() for event in profile.profiler.kineto_results.events() if "c10d" in event.name()}
        (run.folder / f"operations.{run.processes.rank}").write_text("\n".join(sorted(names)), encoding="utf-8")
        return reason

    patched("smet_train.job.train", watched)


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_gloo_can_write_down_the_names_of_all_operations(
    quick_config: QuickConfig, tmp_path: Path, parallel: str
) -> None:
    train(quick_config(*BY_GRADIENT, *FOUR, f"train.parallel={parallel}"), tmp_path, 2, write_down_operations)
    for rank in (0, 1):
        names = set((tmp_path / f"operations.{rank}").read_text(encoding="utf-8").splitlines())
        assert {"c10d::allreduce_", "c10d::allgather_"} <= names <= NAMED_IN_PLACE


BY_GRADIENT = ("topology.grow=gradient", "topology.drop=magnitude_and_gradient", "train.micro_batch_size=1")
BLOCKS = ("model.family=gpt2", "sparsity.block_size=16", "sparsity.density=0.25")


CHUNK_WEIGHTS = 4096


def small_chunks() -> None:
    """Several chunks of each layer, and several passes over the micro-batches."""
    patched("smet_train.topology.candidates.CHUNK_WEIGHTS", CHUNK_WEIGHTS)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (("train.batch_size=4", "topology.probe_steps=2"), (2,)),
        (("train.batch_size=4", "train.activation_checkpointing=true"), (2, 4)),
        ((*BLOCKS, "train.batch_size=4"), (2, 4)),
        ((*BLOCKS, "train.batch_size=8"), (4,)),
        (("topology.drop=magnitude", "train.batch_size=2"), (2,)),
    ],
    ids=lambda value: ",".join(map(str, value)),
)
def test_growth_by_gradient(
    quick_config: QuickConfig, tmp_path: Path, overrides: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    """With one micro-batch in a process, and with several; the topologies are equal."""
    config = quick_config(FSDP, *BY_GRADIENT, "model.layers=1", *overrides)
    for size in (1, *sizes):
        train(config, tmp_path / str(size), size, in_double_precision, small_chunks)
    one = tmp_path / "1"
    for size in sizes:
        several = tmp_path / str(size)
        assert losses(several) == pytest.approx(losses(one), abs=1e-10)
        assert apart(weights(several, 6), weights(one, 6)) < 1e-10
        moves = [[{**event, "sent_bytes": 0} for event in events(folder, "topology")] for folder in (one, several)]
        assert moves[0] == moves[1]
        assert probe_bytes(several) <= 1.05 * probe_bytes(one) / size + 2 * 8 * CHUNK_WEIGHTS  # of what is dense


def spoil_probe(after_step: int) -> None:
    """A loss that is no number in this process, in what the update after ``after_step`` looks at alone."""
    token_loss, probe_batches, bad = step.token_loss, loop.probe_batches, False

    def spoiled(*arguments: Any) -> Tensor:
        return token_loss(*arguments) * (float("nan") if bad else 1.0)

    def spoiled_batches(run: Run) -> list[Callable[[], None]]:
        def spoil(backward: Callable[[], None]) -> None:
            nonlocal bad
            bad = run.state.step == after_step
            backward()
            bad = False

        return [partial(spoil, backward) for backward in probe_batches(run)]

    patched("smet_train.train.step.token_loss", spoiled)
    patched("smet_train.train.loop.token_loss", spoiled)
    patched("smet_train.train.loop.probe_batches", spoiled_batches)


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("batch", [2, 4])
def test_a_gradient_that_is_not_finite_in_one_process_moves_nothing_in_any(
    quick_config: QuickConfig, tmp_path: Path, parallel: str, grow: str, batch: int
) -> None:
    config = quick_config(
        *BY_GRADIENT, f"topology.grow={grow}", f"train.batch_size={batch}", f"train.parallel={parallel}"
    )
    assert end(start(config, tmp_path, 2, of={1: partial(spoil_probe, 2)})) == [0, 0], said(tmp_path)
    moved = [(event["step"], bool(event["grown"]), bool(event["dropped"])) for event in events(tmp_path, "topology")]
    assert moved == [(2, False, False), (4, True, True)]
    [incident] = read_events(tmp_path / "incidents.jsonl")
    assert (incident["step"], incident["action"]) == (3, "the topology stays as it is")


def probe_bytes(folder: Path) -> int:
    [memory] = events(folder, "memory")
    return next(row["bytes"] for row in memory["kinds"] if row["kind"] == "gradient probe")  # type: ignore[attr-defined]


def test_a_run_starts_from_weights_as_one_process_does(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config("method=dense"), tmp_path / "dense", 1)
    config = quick_config(*FOUR, FSDP, "train.deterministic=true", f"model.init_from={tmp_path / 'dense'}")
    for size in (1, 2):
        train(config, tmp_path / str(size), size, in_double_precision)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=1e-10)
    assert losses(tmp_path / "2", "eval")[0] == pytest.approx(losses(tmp_path / "1", "eval")[0], abs=1e-10)
    assert apart(weights(tmp_path / "2", 6), weights(tmp_path / "1", 6)) < 1e-10


@pytest.mark.parametrize("first", LAYOUTS)
def test_a_checkpoint_of_any_layout_goes_into_any_other(quick_config: QuickConfig, tmp_path: Path, first: str) -> None:
    """What a run that has nothing to do saves is what it has loaded."""
    size, parallel = LAYOUTS[first]
    saved = tmp_path / "saved"
    train(quick_config(*FOUR, "train.steps=3", f"train.parallel={parallel}"), saved, size)
    checkpoint = saved / "checkpoints" / "step_00000003"
    for second, (other_size, other) in LAYOUTS.items():
        if second == first:
            continue
        folder = tmp_path / second
        config = quick_config(*FOUR, "train.steps=3", f"train.parallel={other}", f"checkpoint.resume={checkpoint}")
        train(config, folder, other_size)
        before, after = load_checkpoint(checkpoint), load_checkpoint(folder / "checkpoints" / "step_00000003")
        for part in ("model", "optimizer", "topology"):
            assert before.tensors[part].keys() == after.tensors[part].keys()
            assert all(torch.equal(held, after.tensors[part][name]) for name, held in before.tensors[part].items())
        assert before.plain["optimizer"] == after.plain["optimizer"]
        assert before.plain["data"] == after.plain["data"]
        assert not losses(folder)


def test_after_a_stop_or_a_kill_the_run_goes_on_bit_for_bit(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("checkpoint.interval=2", "train.micro_batch_size=1", FSDP)
    train(config, tmp_path / "whole", 2)
    for name, hook, statuses in (
        ("stopped", partial(stop_after, 2, signal.SIGUSR1), [0, 0]),
        ("killed", partial(die_in_step, 5), [1, -signal.SIGKILL]),
    ):
        folder = tmp_path / name
        assert end(start(config, folder, 2, of={1: hook})) == statuses, said(folder)
        train(config, folder, 2)
        assert digest(folder, 6) == digest(tmp_path / "whole", 6)
    assert "another process of this run has ended" in said(tmp_path / "killed")


def test_bad_steps_send_all_back_to_the_checkpoint_and_a_bad_state_is_kept(
    quick_config: QuickConfig, tmp_path: Path
) -> None:
    config = quick_config("train.micro_batch_size=1", FSDP, "optimizer.lr=1e30", "optimizer.grad_clip=0")
    config.train.max_bad_steps = 0
    assert end(start(config, tmp_path, 2)) == [1, 1], said(tmp_path)
    assert (tmp_path / "inspect").is_dir()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method=gmp"], "topology.grow=nothing, which prunes, .* write method=smet, or train.parallel=ddp"),
        (["optimizer.moments=fp8"], "optimizer.moments=fp8, which scales .* write optimizer.moments=fp32, or"),
        (
            ["train.fused_backward_step=true", "optimizer.grad_clip=0", "train.micro_batch_size=4"],
            "fused_backward_step=true, which updates before .* write train.fused_backward_step=false, or",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_would_not_be_as_of_one_process_is_refused(
    quick_config: QuickConfig, overrides: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=f"train.parallel=fsdp does not go with .*{told}"):
        quick_config(FSDP, *overrides)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("only Tensors of floating point dtype can require gradients", "train.parallel=fsdp needs a newer torch than"),
        ("something else", "something else"),
    ],
)
def test_a_torch_that_can_split_no_index_is_told(monkeypatch: pytest.MonkeyPatch, said: str, told: str) -> None:
    def fully_shard(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("smet_train.train.sharded_gradients.fully_shard", fully_shard)
    mesh = object()
    with pytest.raises((ConfigError, RuntimeError), match=told):
        ShardedGradients(Processes(0, 2), torch.nn.Linear(2, 2), "fp32", {}, mesh)  # type: ignore[arg-type]
