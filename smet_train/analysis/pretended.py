"""Processes that are not there: what each of several would hold and send, found in one.

torch has a backend for this whose collectives do nothing. It lies among what torch keeps for its own tests, so only a
plan of a sharded run imports it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from smet_train.train.processes import Processes


@contextmanager
def pretended(size: int) -> Iterator[tuple[Processes, DeviceMesh]]:
    """The first of ``size`` processes, and their mesh; this process must not be one of several in truth."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield Processes(0, size), init_device_mesh("cpu", (size,))
    finally:
        dist.destroy_process_group()
