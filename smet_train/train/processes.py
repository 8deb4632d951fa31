"""The processes that train one run together, and what they tell each other beside gradients.

The first one leads: it reads the data, holds the lock and writes the run folder. What only it can know it tells the
others, so that all take the same branches; an error of its own is raised in all of them.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch exports it without saying so
from torch.distributed.rendezvous import rendezvous

from smet_train import ranks
from smet_train.errors import ConfigError, SmetError, TrainingError
from smet_train.sparse.sampling import stream_key
from smet_train.sparse.shards import is_sharded, whole
from smet_train.train.watch import SETTING, told_if_long, watching

T = TypeVar("T")

# The leader may prepare data for hours. What has no end of its own is ended by train.max_silence_minutes.
_PATIENCE = timedelta(days=2)
_RESOLVED_S = 30.0  # a cluster's names may be there later than its processes
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Failed to recv",  # of torch's store, which the leader holds
    "remote process exited",
    "NCCL",
)


class Processes:
    """``size`` processes, of which this is ``rank``; alone, every method gives what it is given.

    Every method is called by all of them in the same order.

    Attributes:
        sent_bytes: payload that this process has handed to collective operations since it was last set to 0.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None, seed: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.seed = seed
        self.sent_bytes = 0
        self._group = group
        self._aside: Processes | None = None

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Through which they tell each other what is on the CPU; for what torch does with it."""
        return self._group

    def aside(self) -> "Processes":
        """The same processes with a group of its own, for what they do in the background: there its order is another
        one than here. Made by the first call."""
        if self.size == 1:
            return self
        if self._aside is None:
            with lost_process_told():
                group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            self._aside = Processes(self.rank, self.size, group, self.seed)
        return self._aside

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads and writes."""
        return self.rank == 0

    def sent(self) -> dict[str, int]:
        """For an event: ``sent_bytes``; nothing of a process alone."""
        return {"sent_bytes": self.sent_bytes} if self.size > 1 else {}

    def begin_step(self, step: int) -> None:
        """Count from 0 what is sent, and give each process random numbers of its own.

        They draw other dropout, whatever they drew before, and the same when the run goes on. Alone, one generator runs
        through, and its state is saved.
        """
        self.sent_bytes = 0
        if self.size > 1:
            torch.manual_seed(stream_key(self.seed, f"process {self.rank}", step, "dropout") % 2**63)

    def told(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the leader; the others do not call it.

        Raises:
            SmetError: that of the leader, in every process; there it has been ``told`` to the user already.
            TrainingError: in the others, if the leader has failed with anything else.
        """
        if self.size == 1:
            return make()
        given: list[Any] = [None, None]
        failure: Exception | None = None
        if self.leads:
            try:
                given = [make(), None]
            except Exception as error:  # whatever it is, the others wait to hear of it
                failure, given = error, [None, _for_others(error)]
        with lost_process_told():
            dist.broadcast_object_list(given, src=0, group=self._group, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if given[1] is not None:
            kind, message, status = given[1]
            heard: SmetError = kind(message, exit_status=status)
            heard.told = True
            raise heard
        result: T = given[0]
        return result

    def each(self, make: Callable[[], T]) -> list[T]:
        """What ``make`` returns in each process, in all of them.

        Raises:
            SmetError: that of the first process that has one, in every process; the leader tells it.
            TrainingError: the same for any other error, which is raised as it is where it came up.
        """
        if self.size == 1:
            return [make()]
        mine: tuple[Any, Any]
        unforeseen: Exception | None = None
        try:
            mine = make(), None
        except Exception as error:  # whatever it is, the others wait to hear of it
            mine, unforeseen = (None, _for_others(error)), None if isinstance(error, SmetError) else error
        every: list[Any] = [None] * self.size
        with lost_process_told():
            dist.all_gather_object(every, mine, group=self._group)
        if unforeseen is not None:
            raise unforeseen
        for _, failure in every:
            if failure is not None:
                kind, message, status = failure
                raise self.alike(kind(message, exit_status=status))
        return [made for made, _ in every]

    def alike(self, error: SmetError) -> SmetError:
        """``error``, which all processes are about to raise: the leader tells it."""
        error.told = not self.leads
        return error

    def scattered(self, parts: list[Tensor] | None, like: Tensor) -> Tensor:
        """Fill ``like`` with this process's one of the leader's ``parts``, which are of its shape and dtype."""
        self.sent_bytes += sum(part.nbytes for part in (parts or [])[1:])
        with lost_process_told():
            dist.scatter(like, parts, src=0, group=self._group)
        return like

    def highest(self, number: int) -> int:
        """The largest of all ``number``."""
        if self.size == 1:
            return number
        return int(self._reduced(torch.tensor(number), dist.ReduceOp.MAX))

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each of ``numbers`` over all processes, equal in all of them."""
        if self.size == 1:
            return numbers
        return tuple(self._reduced(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.SUM).tolist())

    def add_up(self, tensor: Tensor) -> None:
        """Replace ``tensor``, on the device of the model, by its sum over all processes."""
        if self.size > 1:
            self.sent_bytes += tensor.nbytes
            with lost_process_told():
                dist.all_reduce(tensor)

    def add_up_in(self, tensor: Tensor, owner: int) -> None:
        """Replace ``tensor``, on the device of the model, by its sum over all processes in the process ``owner``;
        elsewhere what it holds is lost."""
        if self.size > 1:
            self.sent_bytes += tensor.nbytes
            with lost_process_told():
                dist.reduce(tensor, dst=owner)

    def spread(self, tensor: Tensor, owner: int) -> None:
        """Replace ``tensor``, on the device of the model, by that of the process ``owner``."""
        if self.size > 1:
            self.sent_bytes += tensor.nbytes if owner == self.rank else 0
            with lost_process_told():
                dist.broadcast(tensor, src=owner)

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """As :func:`smet_train.sparse.shards.whole`."""
        self.sent_bytes += part.nbytes if is_sharded(like) else 0
        with lost_process_told():
            return whole(part, like)

    def gathered(self, numbers: Tensor) -> Tensor:
        """(size, n): the int64 ``numbers`` (n,) of each process."""
        if self.size == 1:
            return numbers[None]
        every = [torch.empty_like(numbers) for _ in range(self.size)]
        self.sent_bytes += numbers.nbytes
        with lost_process_told():
            dist.all_gather(every, numbers, group=self._group)
        return torch.stack(every)

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        self.sent_bytes += tensor.nbytes
        with lost_process_told():
            dist.all_reduce(tensor, operation, group=self._group)
        return tensor


def _for_others(error: Exception) -> tuple[type[SmetError], str, int]:
    """What the other processes raise for the error of one: kind, message, exit status."""
    if isinstance(error, SmetError):
        return type(error), str(error), error.exit_status
    return TrainingError, f"another process of this run has failed: {type(error).__name__}: {error}", 1


ALONE = Processes()


@contextmanager
def joined(device: str, named: int, seed: int, longest_silence_s: float = 1800.0) -> Iterator[Processes]:
    """The processes that torchrun, or ``train.processes``, has started; ALONE if there is one.

    Args:
        device: ``train.device``; on GPUs each process takes one of its machine.
        named: ``train.processes``.
        seed: of what is random in one process alone.
        longest_silence_s: how long another process may give no sign of life before this one ends.

    Raises:
        ConfigError: if there are not ``named`` of them (1: any number), or more on a machine than GPUs, or if the
            place where they are to meet is none.
        TrainingError: if they do not all come.
    """
    size = ranks.world_size()
    if named not in (1, size):
        raise ConfigError(
            f"train.processes={named}, but this is one of {size} processes that were started; write "
            f"train.processes=1 or {size} under torchrun, or leave torchrun out: smet-train starts them itself"
        )
    if size == 1:
        yield ALONE
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        _take_gpu(ranks.local_rank(), torch.cuda.device_count())
    share_cores()
    place = _meeting_place()
    with lost_process_told(), told_if_long(lambda: f"for the other processes at {place}", longest_silence_s):
        with _failed_meeting_told(place, size):
            store, rank, _ = next(rendezvous("env://", timeout=_PATIENCE))
        # torchrun's store outlives a restart, and holds where the processes of the attempt before were to be reached.
        attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=attempt, rank=rank, world_size=size, timeout=_PATIENCE
        )
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        own = attempt.clone()  # type: ignore[attr-defined]  # of torch.distributed.Store
        with watching(own, rank, size, longest_silence_s):
            yield Processes(rank, size, control, seed)
    finally:
        dist.destroy_process_group()


def _meeting_place() -> str:
    """``HOST:PORT`` of the first process, by the environment.

    Raises:
        ConfigError: if it is not there, or if the host's name leads nowhere.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={ranks.world_size()} says that other processes take part, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; start them by torchrun or train.processes, or unset "
            "WORLD_SIZE"
        )
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"MASTER_PORT={port} is no port; write a number from 1 to 65535")
    last_s = time.monotonic() + _RESOLVED_S
    while True:
        try:
            socket.getaddrinfo(host, int(port))
            return f"{host}:{port}"
        except OSError as error:
            if time.monotonic() > last_s:
                raise ConfigError(
                    f"MASTER_ADDR={host} leads to no machine ({error.strerror}, tried for {_RESOLVED_S:g} s); write "
                    "the name or the address of the machine where process 0 runs"
                ) from error
            time.sleep(min(1.0, _RESOLVED_S / 2))


@contextmanager
def _failed_meeting_told(place: str, size: int) -> Iterator[None]:
    try:
        yield
    except dist.DistError as error:
        text = str(error).splitlines()[0]
        if "EADDRINUSE" in text or "address already in use" in text:
            raise ConfigError(
                f"{place} is where the processes of this run are to meet, but another program listens there; write "
                "another MASTER_PORT, or --rdzv-endpoint=HOST:PORT of torchrun"
            ) from error
        raise TrainingError(
            f"the {size} processes of this run did not meet at {place} ({text[:200]}). All of them must be started "
            f"within {SETTING}, and the port must be open between their machines",
            exit_status=1,
        ) from error


def _take_gpu(number: int, n_gpus: int) -> None:
    if number >= n_gpus:
        raise ConfigError(
            f"process {number + 1} of this machine has no GPU: torch sees {n_gpus} here; start {n_gpus} processes on a "
            "machine, or write train.device=cpu"
        )
    torch.cuda.set_device(number)


def share_cores() -> None:
    """The threads of this machine's processes are as many as its cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def lost_process_told() -> Iterator[None]:
    """Inside, what torch says of a process that has gone is an error that says what to do.

    Raises:
        TrainingError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(known in text for known in _LOST):
            raise
        raise TrainingError(
            "another process of this run has ended; what it said above is the reason. The same command goes on from "
            f"the newest checkpoint ({text.splitlines()[0][:200]})",
            exit_status=1,
        ) from error
