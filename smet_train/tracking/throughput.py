"""Training speed in tokens a second, over the last steps."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Tokens a second over the last ``window_steps`` steps; time inside :meth:`paused` does not count."""

    def __init__(self, window_steps: int = 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: deque[tuple[int, float]] = deque(maxlen=window_steps)
        self._started_s = clock()
        self._paused_s = 0.0

    def step(self, tokens: int) -> float:
        """A step over ``tokens`` tokens has ended; returns the speed. A clock that stands still gives 0."""
        now_s = self._clock()
        self._steps.append((tokens, now_s - self._started_s - self._paused_s))
        self._started_s, self._paused_s = now_s, 0.0
        elapsed_s = sum(seconds for _, seconds in self._steps)
        return sum(tokens for tokens, _ in self._steps) / elapsed_s if elapsed_s > 0 else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes: evaluation, a topology update, saving."""
        started_s = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - started_s
