"""What goes wrong in a run of several processes is told once, and ends all of them."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from smet_train import build, ranks
from smet_train.config.schema import Config
from smet_train.config.validate import check_processes
from smet_train.errors import ConfigError, DataError, TrainingError
from smet_train.sparse.ledger import sparse_layers
from smet_train.train import agreement, loop, processes
from smet_train.train.lock import run_folder_lock
from smet_train.train.processes import joined, lost_process_told
from smet_train.train.run import Run
from tests.distributed.ranks import end, patched, said, start, train

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]


def test_a_batch_that_can_not_be_shared(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("train.batch_size=6")
    with pytest.raises(ConfigError, match=r"2 processes can't share the 3 micro-batches .* write train.batch_size=8 or "
                       r"train.micro_batch_size=3$"):  # fmt: skip
        check_processes(config, 2)
    with pytest.raises(ConfigError, match=r"write train.batch_size=8$"):
        check_processes(config, 4)
    assert end(start(config, tmp_path, 2)) == [2, 2]
    assert said(tmp_path).count("can't share the 3 micro-batches") == 1


def test_gradients_that_are_freed_can_not_be_shared(quick_config: QuickConfig) -> None:
    config = quick_config("train.fused_backward_step=true", "optimizer.grad_clip=0", "train.micro_batch_size=4")
    config.train.batch_size = 8
    with pytest.raises(ConfigError, match="frees each gradient before 2 processes have averaged it; leave it out"):
        check_processes(config, 2)


def test_another_number_than_was_started() -> None:
    with pytest.raises(ConfigError, match="train.processes=3, but this is one of 1 processes"), joined("cpu", 3, 1):
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_another_number_than_was_started_is_told_once(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(ConfigError, match="write train.processes=1 or 2 under torchrun") as told, joined("cpu", 4, 1):
        pass
    assert told.value.told == (rank == 1)


def bad_losses() -> None:
    """Every loss is NaN."""
    patched("smet_train.train.loop.forward_backward", lambda *_: math.nan)


def test_bad_numbers_that_end_a_run_are_told_once(quick_config: QuickConfig, tmp_path: Path) -> None:
    assert end(start(quick_config("train.micro_batch_size=1"), tmp_path, 2, bad_losses)) == [1, 1]
    assert said(tmp_path).count("and there is no checkpoint to go back to") == 1


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "local_rank", lambda: 1)
    with (
        pytest.raises(ConfigError, match="process 2 of this machine has no GPU: torch sees 1 here"),
        joined("auto", 1, 1),
    ):
        pass


def test_other_errors_than_a_lost_process_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^shapes$"), lost_process_told():
        raise RuntimeError("shapes")


def test_a_leader_that_dies_while_another_process_waits_in_its_store_is_lost() -> None:
    said_by_torch = (
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
    )
    with pytest.raises(TrainingError, match="another process of this run has ended"), lost_process_told():
        raise torch.distributed.DistNetworkError(said_by_torch)


def fail_to_read() -> None:
    """The source breaks after the data of step 3."""
    read_ahead = loop.read_ahead

    def read(run: Run) -> bool:
        if run.state.step == 3 and run.processes.leads:
            run.batches._loader._error = DataError("the disk is gone", exit_status=1)  # type: ignore[union-attr]
            run.batches._loader._peeked.clear()  # type: ignore[union-attr]
        return read_ahead(run)

    patched("smet_train.train.loop.read_ahead", read)


def test_data_that_can_not_be_read_are_told_once_and_the_state_is_saved(
    quick_config: QuickConfig, tmp_path: Path
) -> None:
    config = quick_config("checkpoint.interval=0", "train.micro_batch_size=1")
    assert end(start(config, tmp_path, 2, fail_to_read)) == [1, 1]
    assert (tmp_path / "checkpoints" / "step_00000003").is_dir()


def disturb_index(step: int) -> None:
    """Another topology in this process."""
    move = loop.move_topology

    def moved(run: Run) -> None:
        if run.topology.due(run.state.step) and run.state.step == step:
            layer = list(sparse_layers(run.model).values())[3]
            values = layer.values.detach()
            values[values.abs().argmax()] = 0  # what is smallest is dropped
        move(run)

    patched("smet_train.train.loop.move_topology", moved)


def test_another_topology_in_one_process_ends_the_run_and_names_the_layer(
    quick_config: QuickConfig, tmp_path: Path
) -> None:
    config = quick_config("train.micro_batch_size=1", "debug.check_invariants=false")
    assert end(start(config, tmp_path, 2, of={1: partial(disturb_index, 4)})) == [1, 1]
    text = said(tmp_path)
    assert text.count("after step 4: layer model.layers.0.self_attn.o_proj of process 1 is not that of process 0") == 1


def other_weights() -> None:
    """Another embedding in this process."""
    check = agreement.check_same_start

    def disturbed(group: processes.Processes, model: torch.nn.Module, before_split: dict[str, int]) -> None:
        next(model.parameters()).detach().add_(1e-3)
        check(group, model, before_split)

    patched("smet_train.job.check_same_start", disturbed)


def test_another_start_in_one_process_ends_the_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    assert end(start(quick_config("train.micro_batch_size=1"), tmp_path, 2, of={1: other_weights})) == [1, 1]
    assert "at the start: tensor model.embed_tokens.weight of process 1 is not that of process 0" in said(tmp_path)


def other_sites(step: int) -> None:
    """Other sites are grown in this process after ``step``."""
    move = loop.move_topology

    def moved(run: Run) -> None:
        run.topology.seed += run.state.step == step
        move(run)

    patched("smet_train.train.loop.move_topology", moved)


def test_another_choice_for_a_sharded_layer_ends_the_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    """Though each process holds but a part of what it has chosen."""
    config = quick_config("train.micro_batch_size=1", "train.parallel=fsdp")
    assert end(start(config, tmp_path, 2, of={1: partial(other_sites, 4)})) == [1, 1]
    text = said(tmp_path)
    assert "after step 4: layer model.layers.0.self_attn.q_proj of process 1 is not that of process 0" in text


def other_weights_before_the_split() -> None:
    """Another embedding in this process."""
    build_loss = build.build_loss

    def disturbed(config: Config, model: torch.nn.Module, group: processes.Processes) -> object:
        next(model.parameters()).detach().add_(1e-3)
        return build_loss(config, model, group)

    patched("smet_train.build.build_loss", disturbed)


def test_another_start_of_a_sharded_model_ends_the_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("train.micro_batch_size=1", "train.parallel=fsdp")
    assert end(start(config, tmp_path, 2, of={1: other_weights_before_the_split})) == [1, 1]
    assert "at the start: tensor model.embed_tokens.weight of process 1 is not that of process 0" in said(tmp_path)


def test_a_second_run_in_the_folder_is_refused_once(quick_config: QuickConfig, tmp_path: Path) -> None:
    with run_folder_lock(tmp_path):
        assert end(start(quick_config("train.micro_batch_size=1"), tmp_path, 2)) == [2, 2]
    train(quick_config("train.micro_batch_size=1"), tmp_path, 2)
