"""Trying again what may work in a moment."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from smet_train.data.remote import is_passing
from smet_train.errors import DataError

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# Doubled for each try; five tries wait half a minute in all.
FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0


class Retries:
    """Counts failures in a row and waits longer after each.

    Args:
        allowed: how many are waited for.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._failures = 0
        self._ended = threading.Event()

    def worked(self) -> None:
        """Start counting anew."""
        self._failures = 0

    def end(self) -> None:
        """Let no more time pass; for another thread."""
        self._ended.set()

    def wait(self, where: str, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            DataError: with exit status 1, if ``error`` came too often.
        """
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        if self._failures == self._allowed or self._ended.is_set():
            raise DataError(
                f"can't reach {where}: {what}, after data.retries={self._allowed} further tries; type the same command "
                "to go on when it can be read again",
                exit_status=1,
            ) from error
        wait_s = min(FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
        self._failures += 1
        log.warning("data: can't read %s (%s); try %d in %g s", where, what, self._failures + 1, wait_s)
        self._ended.wait(wait_s)


def retried(action: Callable[[], _Result], where: str, allowed: int) -> _Result:
    """The result of ``action``, tried again while it fails for a passing reason.

    Raises:
        DataError: with exit status 1, if it failed too often.
    """
    retries = Retries(allowed)
    while True:
        try:
            return action()
        except OSError as error:
            if not is_passing(error):
                raise
            retries.wait(where, error)
