"""Which of a run's processes this one is, as torchrun and ``train.processes`` tell it in the environment; no torch."""

import os


def world_size() -> int:
    """How many processes train this run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, from 0: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """How often torchrun starts a run again that has failed."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def follows() -> bool:
    """Whether another process reads the data, writes the run folder and tells the user what happens."""
    return rank() > 0


def name() -> str:
    """For messages of a process that is not alone: ``[process 1 of 4] ``; else nothing."""
    return f"[process {rank()} of {world_size()}] " if world_size() > 1 else ""
