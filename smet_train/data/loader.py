"""Micro-batches of windows, read ahead in a background thread without losing the position."""

import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from smet_train.data.stream import TokenWindows

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Item:
    """A batch and the position after it, or what went wrong instead."""

    batch: Tensor | None
    state: dict[str, Any]
    error: BaseException | None = None


class BatchLoader(Iterator[Tensor]):
    """Endless iterator of micro-batches (``micro_batch_size``, ``sequence_tokens + 1``) of int64 ids, on the CPU.

    Args:
        windows: owned by the loader from now on.
        prefetch_batches: micro-batches read ahead; 0 reads them in the caller's thread, when they are asked for.
    """

    def __init__(self, windows: TokenWindows, *, micro_batch_size: int, prefetch_batches: int) -> None:
        self._windows = windows
        self._micro_batch_size = micro_batch_size
        self._prefetch_batches = prefetch_batches
        self._state = windows.state_dict()
        self._error: BaseException | None = None
        self._reader: _Reader | None = None
        self._peeked: deque[_Item] = deque()

    def __next__(self) -> Tensor:
        """The next micro-batch.

        Raises:
            DataError: if the source can't be read; again on every later call.
        """
        self.peek(1)
        item = self._peeked.popleft()
        assert item.batch is not None
        self._state = item.state
        return item.batch

    def peek(self, n_batches: int, timeout_s: float | None = None) -> list[Tensor]:
        """The next ``n_batches`` micro-batches, which are handed out again afterwards; the position stays.

        With ``timeout_s``, fewer if one is not there after so many seconds (where ``prefetch_batches`` > 0).

        Raises:
            DataError: if the source can't be read; what was read before can still be handed out.
        """
        while len(self._peeked) < n_batches:
            if self._error is not None:
                raise self._error
            item = self._next_item(timeout_s)
            if item is None:
                break
            if item.error is not None:
                self._error = item.error
                raise item.error
            self._peeked.append(item)
        return [item.batch for item in islice(self._peeked, n_batches) if item.batch is not None]

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out, whatever was read ahead."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that was the last when ``state`` was taken; drops what was read ahead.

        Raises:
            DataError: if ``state`` belongs to another source, tokenizer or order.
        """
        self.close()
        self._windows.load_state_dict(state)
        self._state = self._windows.state_dict()
        self._error = None

    def close(self) -> None:
        """Stop reading ahead. The loader may be used again after ``load_state_dict``."""
        self._peeked.clear()
        if self._reader is not None:
            self._reader.stop()
            self._reader = None

    def _next_item(self, timeout_s: float | None) -> _Item | None:
        if self._prefetch_batches == 0:
            return _read(self._windows, self._micro_batch_size)
        if self._reader is None:
            # What an earlier reader had read ahead was dropped with it.
            self._windows.load_state_dict(self._state)
            self._reader = _Reader(self._windows, self._micro_batch_size, self._prefetch_batches)
        try:
            return self._reader.items.get(timeout=timeout_s)
        except queue.Empty:
            return None


class _Reader:
    """A thread that fills a queue; it ends with the interpreter or with its owner, whichever is first."""

    def __init__(self, windows: TokenWindows, micro_batch_size: int, prefetch_batches: int) -> None:
        self.items: queue.Queue[_Item] = queue.Queue(prefetch_batches)
        stopping = threading.Event()
        thread = threading.Thread(
            target=_fill,
            args=(windows, micro_batch_size, self.items, stopping),
            name="smet-train data reader",
            daemon=True,
        )
        # Runs at exit too: a thread inside pyarrow or tokenizers while the interpreter is torn down prints noise.
        self.stop = weakref.finalize(self, _stop, thread, stopping, windows, self.items)
        thread.start()


def _stop(
    thread: threading.Thread, stopping: threading.Event, windows: TokenWindows, items: "queue.Queue[_Item]"
) -> None:
    stopping.set()
    windows.end()
    with suppress(queue.Empty):  # it may wait for room
        items.get_nowait()
    thread.join()


def _fill(windows: TokenWindows, micro_batch_size: int, items: "queue.Queue[_Item]", stopping: threading.Event) -> None:
    while not stopping.is_set():
        item = _read(windows, micro_batch_size)
        while not stopping.is_set():
            try:
                items.put(item, timeout=_POLL_S)
                break
            except queue.Full:
                continue
        if item.error is not None:
            return


def _read(windows: TokenWindows, micro_batch_size: int) -> _Item:
    try:
        batch = torch.tensor([next(windows) for _ in range(micro_batch_size)], dtype=torch.int64)
        return _Item(batch, windows.state_dict())
    except BaseException as error:  # handed to the thread that asks for the batch
        return _Item(None, windows.state_dict(), error)
