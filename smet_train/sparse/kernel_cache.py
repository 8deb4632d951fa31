"""Kernels that numba compiles once and keeps on disk; a kill, a race or a full disk costs a compilation at most.

numba's own cache first writes an index that names numbered files, then the file. A process killed in between, or two at
once, can leave an index that names code of other types or of an older source, which then runs without a word; a file
cut short ends every later start with an error (``numba.core.caching.IndexDataCacheFile``, numba 0.61 to 0.68). Here a
file is named by all that its code was made from and begins with a checksum; one that does not fit is compiled again.
"""

import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smet_train.importing import not_installed
from smet_train.replacing import replacing

# Where scipy is installed numba imports it, to see whether products could go through its BLAS. No kernel here has one.
# Kernels take what they need of numba from here.
with not_installed("scipy"):
    import numba
    import numba.np.arraymath
    from numba import prange
    from numba.core.caching import FunctionCache
    from numba.core.serialize import dumps

__all__ = ["KernelCache", "kernel", "prange"]

log = logging.getLogger(__name__)

_CHECKSUM_BYTES = 32
_CONSTANTS = (int, float, tuple, set, frozenset)


def kernel(**options: Any) -> Callable[[Callable[..., None]], Any]:
    """``numba.njit`` with ``options``, and what it compiles kept for later processes, where there is a place for it."""

    def decorate(function: Callable[..., None]) -> Any:
        compiled = numba.njit(**options)(function)
        try:
            compiled._cache = KernelCache(function, options)
        except RuntimeError as error:  # neither beside the source nor in the user's cache folder
            _tell(str(error))
        return compiled

    return decorate


class KernelCache(FunctionCache):
    """Where numba looks for the code of one function before it compiles, and puts it afterwards.

    Args:
        options: of the compilation; part of what code is known by.

    Raises:
        RuntimeError: if there is no folder that can be written.
    """

    def __init__(self, function: Callable[..., None], options: dict[str, Any]) -> None:
        super().__init__(function)
        self._cache_file: Any = _Files(Path(self.cache_path), self._impl.filename_base, self._made_from)
        self._options = options

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep ``data``, compiled for ``sig``; if that fails the run goes on with it all the same."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _tell(str(error))

    def _made_from(self) -> list[Any]:
        """Versions, source, options, and the constants of the module, which are part of the code."""
        constants = {name: value for name, value in self._py_func.__globals__.items() if isinstance(value, _CONSTANTS)}
        known = {**constants, **self._options}
        told = [(name, sorted(value) if isinstance(value, set | frozenset) else value) for name, value in known.items()]
        return [numba.__version__, self._impl.locator.get_source_stamp(), *sorted(told)]


class _Files:
    """A file for each key, in place of ``IndexDataCacheFile``."""

    def __init__(self, folder: Path, base: str, made_from: Callable[[], list[Any]]) -> None:
        self._folder = folder
        self._base = base
        self._made_from = made_from

    def load(self, key: Any) -> Any:
        """What was saved for ``key``; None if it is not there or damaged."""
        name = self._name(key)
        try:
            found = (self._folder / name).read_bytes()
        except OSError:
            return None
        checksum, content = found[:_CHECKSUM_BYTES], found[_CHECKSUM_BYTES:]
        return pickle.loads(content) if checksum == _checksum(name, content) else None

    def save(self, key: Any, data: Any) -> None:
        """Write a file of its own and give it its name. It is not flushed: after a power cut its checksum tells."""
        name, content = self._name(key), dumps(data)
        with replacing(self._folder / name) as part:
            part.write_bytes(_checksum(name, content) + content)

    def flush(self) -> None:
        """Remove all files of the function, as ``recompile`` asks for."""
        for path in self._folder.glob(f"{self._base}.*.kernel"):
            path.unlink(missing_ok=True)

    def _name(self, key: Any) -> str:
        return f"{self._base}.{hashlib.sha256(repr([self._made_from(), key]).encode()).hexdigest()[:32]}.kernel"


def _checksum(name: str, content: bytes) -> bytes:
    """Of a file's content, and of the name that it was made for."""
    return hashlib.sha256(name.encode() + content).digest()


@functools.cache  # once, not for each kernel
def _tell(reason: str) -> None:
    log.warning(
        "compiled kernels are not kept (%s): every start compiles them anew, for some seconds; "
        "NUMBA_CACHE_DIR=FOLDER names another place",
        reason,
    )
