"""Where tokenizers and validation windows are kept between runs."""

import os
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path


def default_cache_dir() -> Path:
    """``$SMET_CACHE_DIR``, else the user's cache folder of this platform."""
    named = os.environ.get("SMET_CACHE_DIR")
    return Path(named) if named else user_cache_path("smet-train")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then rename it: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
