"""Imports of large libraries, without what makes them slower for nothing."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and transformers within it: the garbage collector rests.

    An import makes many objects that stay, and the collector would look at them again and again. Afterwards it passes
    over them for good.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # or libraries complain at the end of what nobody collected


@contextmanager
def not_installed(*packages: str) -> Iterator[None]:
    """Within it, ``packages`` that are not imported yet seem not to be installed."""
    hidden = [package for package in packages if package not in sys.modules]
    for package in hidden:
        sys.modules[package] = None  # type: ignore[assignment]  # Python's sign for what can't be imported
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]
