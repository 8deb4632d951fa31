"""Signs of life of the processes of a run: one that is frozen, or whose machine has gone, closes no connection, and the
others would wait for it in their next exchange for ever."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from smet_train import ranks

log = logging.getLogger(__name__)

TOLD_S = 60.0
_BEAT_S = 5.0
_LOOK_S = 0.5
_GAP_S = 10.0  # between two looks: it was this process that did not run
_NAMED = 4  # processes in a line about many
_GONE = b"gone"  # the last sign of a process that is done
SETTING = "train.max_silence_minutes"


class Silences:
    """Since when each of ``others`` has given no sign of life. Times are seconds of one clock, which is given.

    Args:
        told_s: silence from which it is told, once, and so is its end.
        longest_s: silence from which it is for good.
    """

    def __init__(self, others: Iterable[int], now_s: float, *, longest_s: float, told_s: float = TOLD_S) -> None:
        self._signs: dict[int, bytes] = dict.fromkeys(others, b"")
        self._heard_s = dict.fromkeys(self._signs, now_s)
        self._looked_s = now_s
        self._told: dict[int, float] = {}
        self._longest_s = longest_s
        self._told_s = min(told_s, longest_s / 2)

    def hear(self, signs: Mapping[int, bytes], now_s: float) -> None:
        """Take the latest sign of each: one that is another than before is new; one that is done is forgotten."""
        for other, sign in signs.items():
            if other in self._signs and sign != self._signs[other]:
                self._signs[other], self._heard_s[other] = sign, now_s
                if sign == _GONE:
                    del self._signs[other], self._heard_s[other]
                    self._told.pop(other, None)

    def look(self, now_s: float) -> tuple[list[str], str | None]:
        """Lines to tell now, and why the run can't go on, if it can't."""
        if now_s > self._looked_s + _GAP_S:  # this process was stopped too, and could hear nothing
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._looked_s = now_s
        back = [other for other, since_s in self._told.items() if self._heard_s[other] > since_s]
        lines = []
        for other in back:
            silence_s = now_s - self._told.pop(other)
            lines.append(f"process {self._name(other)} is there again after {silence_s:.0f} s")
        silent_s = {other: now_s - heard_s for other, heard_s in self._heard_s.items()}
        new = [other for other in silent_s if silent_s[other] >= self._told_s and other not in self._told]
        if new:
            self._told |= {other: self._heard_s[other] for other in new}
            lines.append(
                f"nothing was heard of {self._names(new)} for {self._told_s:.0f} s: frozen, or cut off from here. The "
                f"run waits until there has been no sign of life for {self._longest()}"
            )
        lost = [other for other in silent_s if silent_s[other] >= self._longest_s]
        if not lost:
            return lines, None
        return lines, (
            f"nothing was heard of {self._names(lost)} for {self._longest()}; the same command goes on from the newest "
            "checkpoint"
        )

    def _longest(self) -> str:
        return f"{self._longest_s / 60:g} minutes ({SETTING})"

    def _names(self, others: list[int]) -> str:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return f"process{'es' if len(others) > 1 else ''} {', '.join(map(self._name, others[:_NAMED]))}{more}"

    def _name(self, other: int) -> str:
        host = self._signs[other].decode(errors="replace").rpartition(" ")[0]
        return f"{other} ({host})" if host else str(other)


@contextmanager
def watching(store: Any, rank: int, size: int, longest_s: float) -> Iterator[None]:
    """Inside, this process gives signs of life through ``store``, a connection that nothing else uses, and looks for
    those of others: the first process for all, the others for the first one's.

    A process that is silent for :data:`TOLD_S` is a line on standard error and in the log. One that is silent for
    ``longest_s`` ends this process with status 1: its main thread waits inside torch, where no exception reaches it.
    """
    ended = threading.Event()
    others = range(1, size) if rank == 0 else [0]
    silences = Silences(others, time.monotonic(), longest_s=longest_s)
    host = socket.gethostname()
    lock = threading.Lock()

    def beat() -> None:
        """In a thread of its own, because a store whose machine has gone may never answer."""
        number = 0
        try:
            while not ended.is_set():
                number += 1
                store.set(_key(rank), f"{host} {number}")
                found = store.multi_get([_key(other) for other in others])
                with lock:
                    silences.hear(dict(zip(others, map(bytes, found), strict=True)), time.monotonic())
                ended.wait(min(_BEAT_S, longest_s / 20))
            store.set(_key(rank), _GONE)
        except RuntimeError as error:  # the store has ended, and with it the first process: its connections tell
            log.debug("signs of life: %s", error)

    def look() -> None:
        while not ended.wait(_LOOK_S):
            with lock:
                lines, lost = silences.look(time.monotonic())
            tells = rank in (0, 1) or ranks.local_rank() == 0  # of those that wait for the first one, one a machine
            for line in lines if tells else ():
                say(line)
            if lost is not None and not ended.is_set():
                end(lost, tells=tells)

    threads = [threading.Thread(target=work, name="smet-train signs of life", daemon=True) for work in (beat, look)]
    store.set(_key(rank), f"{host} 0")
    for other in others:
        store.wait([_key(other)])
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(_LOOK_S)


@contextmanager
def told_if_long(waits_for: Callable[[], str], longest_s: float, told_s: float = TOLD_S) -> Iterator[None]:
    """Inside, this process waits in a library: ``waits_for`` says for what, in a line after ``told_s``. After
    ``longest_s`` the process ends."""
    over = threading.Event()

    def look() -> None:
        if not over.wait(min(told_s, longest_s / 2)):
            if ranks.local_rank() == 0:
                say(f"still waiting {waits_for()}; for {longest_s / 60:g} minutes at most ({SETTING})")
            if not over.wait(longest_s - min(told_s, longest_s / 2)):
                end(f"waited {waits_for()} for {longest_s / 60:g} minutes ({SETTING}) in vain", tells=True)

    thread = threading.Thread(target=look, name="smet-train waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(line: str) -> None:
    """A line on standard error and in the log."""
    print(f"smet-train: {ranks.name()}{line}", file=sys.stderr, flush=True)
    log.info("%s", line)


def end(reason: str, *, tells: bool) -> None:
    """End this process whatever its other threads do."""
    if tells:
        say(reason)
    os._exit(1)


def _key(rank: int) -> str:
    return f"sign of life {rank}"
