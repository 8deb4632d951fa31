"""One stream of micro-batches for all processes of a run: the first reads it, and each gets its own ones."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from smet_train.data.loader import BatchLoader
from smet_train.train.processes import Processes


class SharedBatches(Iterator[Tensor]):
    """Micro-batch i of the stream is process i mod N's, so that N processes train on what one would.

    The position is that of the stream, and belongs to no number of processes. Methods are as those of
    :class:`BatchLoader`, and are called by all processes alike.

    Args:
        loader: the stream, in the leading process; None in the others.
        shape: of a micro-batch.
    """

    def __init__(self, processes: Processes, loader: BatchLoader | None, shape: tuple[int, int]) -> None:
        self._processes = processes
        self._loader = loader
        self._shape = shape
        self._held: deque[Tensor] = deque()

    def __next__(self) -> Tensor:
        """This process's next micro-batch.

        Raises:
            DataError: if the source can't be read.
        """
        self.peek(1)
        if self._loader is not None:
            for _ in range(self._processes.size):
                next(self._loader)
        return self._held.popleft()

    def peek(self, n_batches: int, timeout_s: float | None = None) -> list[Tensor]:
        """This process's next ``n_batches`` micro-batches, the position stays; those that are held already, if the
        others are not there after ``timeout_s``.

        Raises:
            DataError: if the source can't be read, in all processes.
        """
        missing = n_batches - len(self._held)
        if missing > 0 and self._processes.told(lambda: self._is_ready(n_batches, timeout_s)):
            self._held.extend(self._shared_out(missing).unbind())
        return list(islice(self._held, n_batches))

    def _is_ready(self, n_batches: int, timeout_s: float | None) -> bool:
        assert self._loader is not None
        wanted = n_batches * self._processes.size
        return len(self._loader.peek(wanted, timeout_s)) == wanted

    def _shared_out(self, n_new: int) -> Tensor:
        """(n_new, *shape): what follows the micro-batches that are held."""
        size, mine = self._processes.size, torch.empty((n_new, *self._shape), dtype=torch.int64)
        parts = None
        if self._loader is not None:
            first = len(self._held) * size
            stream = torch.stack(self._loader.peek(first + n_new * size)[first:])
            parts = [stream[number::size].contiguous() for number in range(size)]
        return self._processes.scattered(parts, mine)

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, in the leading process; empty in the others."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; drops what was read ahead.

        Raises:
            DataError: if it belongs to another source, tokenizer or order, in all processes.
        """
        self._held.clear()
        self._processes.told(lambda: None if self._loader is None else self._loader.load_state_dict(state))

    def close(self) -> None:
        """Stop reading ahead."""
        if self._loader is not None:
            self._loader.close()
