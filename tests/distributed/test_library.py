"""SparseTraining in a loop of one's own on several processes."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smet_train import SparseTraining
from smet_train.errors import ConfigError, TrainingError
from smet_train.topology import MoveRules
from smet_train.train.processes import Processes
from tests.distributed.ranks import each

STEPS = 12
GRADIENT = MoveRules(drop="magnitude_and_gradient", grow="gradient")


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(inplace=True), nn.Linear(24, 12), nn.Linear(12, 4)).double()


def sparse(model: nn.Module, **changes: Any) -> SparseTraining:
    settings = {"density": 0.3, "lr": 1e-2, "total_steps": 40, "interval": 4, "drop_fraction": 0.4, **changes}
    return SparseTraining(model, **settings)


def batch(step: int, part: int, parts: int) -> Tensor:
    made = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return made.chunk(parts)[part]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x[:, :4].square()).square().mean()


def _backward(model: nn.Module, x: Tensor) -> None:
    loss(model, x).backward()


def train(model: nn.Module, training: SparseTraining, part: int, parts: int, called: nn.Module) -> None:
    """With the gradients of the step before still there when the topology moves."""
    for step in range(STEPS):
        training.optimizer.zero_grad()
        loss(model, batch(step, part, parts)).backward()
        training.optimizer.step()
        before = [parameter.grad for parameter in called.parameters() if parameter.requires_grad]
        training.after_step(partial(_backward, called, batch(1000 + step, part, parts)))
        moved = {id(layer.values) for layer in training.layers.values()}  # whose gradients are of other sites now
        after = [p.grad for p in called.parameters() if p.requires_grad and id(p) not in moved]
        assert all(any(one is other for other in before) for one in after)


def in_ddp(processes: Processes) -> None:
    for through_ddp, unused in ((True, False), (False, False), (True, True)):
        model = small()
        training = sparse(model, rules=GRADIENT)
        parallel = DistributedDataParallel(model, find_unused_parameters=unused)
        train(parallel, training, processes.rank, processes.size, parallel if through_ddp else model)
        alone = small()
        one = sparse(alone, rules=GRADIENT, process_group=_own(processes))
        train(alone, one, 0, 1, alone)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)


def _own(processes: Processes) -> Any:
    groups = [dist.new_group([rank]) for rank in range(processes.size)]
    return groups[processes.rank]


@pytest.mark.slow
def test_two_processes_under_ddp_train_what_one_does_on_both_their_batches() -> None:
    each(2, in_ddp)


def apart_by_seed(processes: Processes) -> None:
    model = small()
    training = sparse(model, seed=processes.rank)
    with pytest.raises(
        TrainingError, match="after step 4 the sites of layer 0 in process 1 are not those of process 0"
    ):
        train(model, training, 0, 1, model)


def apart_by_gradients(processes: Processes) -> None:
    model = small()
    training = sparse(model)  # nobody averages the gradients
    with pytest.raises(TrainingError, match="the processes do not train the same model"):
        train(model, training, processes.rank, processes.size, model)


def apart_by_steps(processes: Processes) -> None:
    training = sparse(small(), interval=4 + 4 * processes.rank)
    training.steps = 3 + 4 * processes.rank
    with pytest.raises(TrainingError, match="the step of process 1 is not that of process 0"):
        training.after_step()


def apart_by_micro_batches(processes: Processes) -> None:
    model = small()
    training = sparse(model, interval=1, rules=GRADIENT)
    micro_batches = [partial(_backward, model, batch(0, 0, 1))] * (1 + processes.rank)
    with pytest.raises(TrainingError, match="the number of micro-batches that after_step was given of process 1"):
        training.after_step(micro_batches)


@pytest.mark.parametrize("check", [apart_by_seed, apart_by_gradients, apart_by_steps, apart_by_micro_batches])
def test_processes_that_train_apart_are_told(check: Any) -> None:
    each(2, check)


def wrapped(_processes: Processes) -> None:
    with pytest.raises(ConfigError, match="make SparseTraining of the model itself, and wrap it afterwards"):
        sparse(DistributedDataParallel(small()))


def test_a_model_that_is_wrapped_already_is_refused() -> None:
    each(2, wrapped)
