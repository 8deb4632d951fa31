"""Micro-batches, read ahead in a thread; the state is that of the last one handed out."""

import queue
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smet_train.data.windows import TokenWindows

_POLL_S = 0.1


class BatchLoader:
    """Endless micro-batches of ``micro_batch_size`` windows, int64 of shape (micro_batch_size, sequence_tokens + 1).

    Args:
        prefetch_batches: micro-batches read ahead while the model computes; 0 reads when asked.
    """

    def __init__(self, windows: TokenWindows, *, micro_batch_size: int, prefetch_batches: int) -> None:
        self._windows = windows
        self._micro_batch_size = micro_batch_size
        self._queue: queue.Queue[tuple[Tensor, dict[str, Any]] | BaseException] = queue.Queue(max(1, prefetch_batches))
        self._prefetch = prefetch_batches > 0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._state = windows.state_dict()

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> Tensor:
        """The next micro-batch; an error met while reading ahead is raised when its batch is due."""
        item = self._next_item()
        if isinstance(item, BaseException):
            raise item
        batch, self._state = item
        return batch

    def _next_item(self) -> tuple[Tensor, dict[str, Any]] | BaseException:
        if not self._prefetch:
            return self._read()
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_ahead, name="batch-loader", daemon=True)
            self._thread.start()
        return self._queue.get()

    def _read(self) -> tuple[Tensor, dict[str, Any]]:
        batch = torch.tensor([next(self._windows) for _ in range(self._micro_batch_size)])
        return batch, self._windows.state_dict()

    def _read_ahead(self) -> None:
        while not self._closed.is_set():
            item: tuple[Tensor, dict[str, Any]] | BaseException
            try:
                item = self._read()
            except BaseException as error:
                item = error
            self._put(item)
            if isinstance(item, BaseException):
                return

    def _put(self, item: tuple[Tensor, dict[str, Any]] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def state_dict(self) -> dict[str, Any]:
        """Position right after the last batch handed out, whatever has been read ahead."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; only before the first batch."""
        assert self._thread is None
        self._windows.load_state_dict(state)
        self._state = dict(state)

    def close(self) -> None:
        """End the reading thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
