"""The parts of one run, put together by :mod:`smet_train.build` and moved by the loop."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.data.loader import BatchLoader
from smet_train.optim import FusedStep, LrSchedule, SmetAdamW
from smet_train.topology import TopologyUpdater
from smet_train.tracking.jsonl import MetricsFile
from smet_train.tracking.sinks import Tracker
from smet_train.tracking.throughput import Throughput
from smet_train.tracking.topology_map import TopologyMap
from smet_train.train.guard import StepGuard
from smet_train.train.processes import Processes
from smet_train.train.saver import Saver
from smet_train.train.sharded_gradients import ShardedGradients
from smet_train.train.shared_batches import SharedBatches
from smet_train.train.shared_gradients import SharedGradients
from smet_train.train.signals import StopRequest
from smet_train.train.spike_watch import SpikeWatch
from smet_train.train.step import TokenLoss


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Numbers that the loop reads; units as in the configuration."""

    total_steps: int
    batch_size: int
    micro_batch_size: int
    processes: int
    sequence_tokens: int
    lr: float
    grad_clip: float
    precision: str
    probe_steps: int
    eval_interval: int
    checkpoint_interval: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches that each process accumulates in one optimizer step."""
        return self.batch_size // (self.micro_batch_size * self.processes)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all processes train on in one optimizer step."""
        return self.batch_size * self.sequence_tokens


@dataclass(slots=True)
class TrainState:
    """How far a run has come: steps taken, tokens trained on, and the steps after which it was evaluated last and
    reported a scheduled checkpoint last, so that what a stop cut short is made up for."""

    step: int = 0
    tokens: int = 0
    evaluated_step: int = -1
    reported_step: int = 0


@dataclass(slots=True)
class Run:
    """One run: what is trained, on what, how, and where it is written down.

    ``loss`` is that of a micro-batch, whose gradients ``processes`` share. ``fused`` makes the optimizer's step in the
    backward pass, if asked for. ``fresh`` is true until a checkpoint is restored into it. ``planned`` has the predicted
    bytes by kind, and of the ``peak``, from the first step of a start on; ``start_rss_bytes`` what the process held
    before the model was made.
    ``has_evaluated`` is true once an evaluation has found room beside the optimizer's state. ``untold_step`` is that of
    the last save that no event tells of.
    """

    settings: LoopSettings
    folder: Path
    config: dict[str, Any]
    device: torch.device
    processes: Processes
    model: nn.Module
    loss: TokenLoss | SharedGradients | ShardedGradients
    optimizer: SmetAdamW
    fused: FusedStep | None
    lr_schedule: LrSchedule
    topology: TopologyUpdater
    batches: BatchLoader | SharedBatches
    validation: Tensor
    spikes: SpikeWatch
    topology_map: TopologyMap
    tracker: Tracker
    metrics: MetricsFile
    throughput: Throughput
    stop: StopRequest
    guard: StepGuard
    saver: Saver
    state: TrainState = field(default_factory=TrainState)
    fresh: bool = True
    planned: dict[str, int] = field(default_factory=dict)
    start_rss_bytes: int = 0
    has_evaluated: bool = False
    untold_step: int = -1

    @property
    def sharded(self) -> ShardedGradients | None:
        """The loss of a model that is split over the processes; None if each has all of it."""
        return self.loss if isinstance(self.loss, ShardedGradients) else None

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.state.step >= self.settings.total_steps
