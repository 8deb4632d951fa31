"""What goes wrong in a run of several processes is told once, and ends all of them."""

import math
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
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
from tests.distributed.ranks import become, end, free_port, patched, said, start, train
from tests.faults import trials

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


def test_another_number_than_was_started_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="write train.processes=1 or 2 under torchrun"), joined("cpu", 4, 1):
        pass


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


def test_other_settings_in_one_process_end_the_run_and_are_named(quick_config: QuickConfig, tmp_path: Path) -> None:
    """Though each of them would train alone; where a file lies may differ."""
    port = free_port()
    settings = (("data.cache_dir=/one",), ("data.cache_dir=/two", "optimizer.lr=0.1", "tracking.probe_windows=2"))
    children = [
        trials.start(quick_config("train.micro_batch_size=1", *own), tmp_path, partial(become, rank, 2, port))
        for rank, own in enumerate(settings)
    ]
    assert end(children) == [2, 2]
    text = said(tmp_path)
    assert text.count("has other settings than process 0: ") == 1
    assert "process 1, on " in text
    assert "optimizer.lr=0.1 (not 0.0005), tracking.probe_windows=2 (not 0); start all" in text
    assert not (tmp_path / "config.yaml").exists()


def another_torch() -> None:
    """Another version in this process."""
    patched("torch.__version__", "2.11.0")


def test_another_version_in_one_process_ends_the_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config("train.micro_batch_size=1")
    assert end(start(config, tmp_path, 2, of={1: another_torch})) == [2, 2]
    assert "has other settings than process 0: torch=2.11.0 (not " in said(tmp_path)


def another_shape() -> None:
    """What a file of another machine says of the model."""

    def named(group: processes.Processes, model: torch.nn.Module, before_split: dict[str, int]) -> None:
        model.register_buffer("more", torch.zeros(1))
        agreement.check_same_start(group, model, before_split)

    patched("smet_train.job.check_same_start", named)


def test_a_tensor_that_one_process_alone_has_ends_the_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    assert end(start(quick_config("train.micro_batch_size=1"), tmp_path, 2, of={1: another_shape})) == [1, 1]
    assert said(tmp_path).count("at the start: process 1 alone has a tensor more") == 1


def meet(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with joined("cpu", 1, 1):
        raise AssertionError


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "WORLD_SIZE=2 says that other processes take part, but MASTER_ADDR, MASTER_PORT are not set"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT=x is no port"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "29500"}, "MASTER_ADDR=nowhere.invalid leads to no machine"),
    ],
)
def test_processes_that_are_told_no_place_to_meet(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    monkeypatch.setattr(processes, "_RESOLVED_S", 0.01)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=re.escape(told)):
        meet(monkeypatch, **variables)


def test_a_port_that_another_program_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"but another program listens there; write another MASTER_PORT"):
            meet(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(other.getsockname()[1]))


def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Iterator[None]:
        raise torch.distributed.DistStoreError("Timed out after 5 seconds waiting for clients. 1/2 clients joined.")

    monkeypatch.setattr(processes, "rendezvous", fail)
    with pytest.raises(TrainingError, match=r"the 2 processes of this run did not meet at 127.0.0.1:29500 \(Timed out"):
        meet(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


def freeze(step: int) -> None:
    """This process is stopped at ``step``, as one whose machine hangs."""
    read_ahead = loop.read_ahead

    def frozen(run: Run) -> bool:
        if run.state.step == step:
            os.kill(os.getpid(), signal.SIGSTOP)
        return read_ahead(run)

    patched("smet_train.train.loop.read_ahead", frozen)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_ends_the_run_after_the_time_that_a_setting_gives(
    quick_config: QuickConfig, tmp_path: Path, frozen: int
) -> None:
    config = quick_config("train.micro_batch_size=1", "train.max_silence_minutes=0.05")
    children = start(config, tmp_path, 2, of={frozen: partial(freeze, 3)})
    try:
        assert end([children[1 - frozen]]) == [1]
        text = said(tmp_path)
        assert text.count(f"nothing was heard of process {frozen} (") == 2
        assert "for 0.05 minutes (train.max_silence_minutes); the same command goes on" in text
    finally:
        children[frozen].kill()
        children[frozen].join()


def test_a_second_run_in_the_folder_is_refused_once(quick_config: QuickConfig, tmp_path: Path) -> None:
    with run_folder_lock(tmp_path):
        assert end(start(quick_config("train.micro_batch_size=1"), tmp_path, 2)) == [2, 2]
    train(quick_config("train.micro_batch_size=1"), tmp_path, 2)
