"""The cache of what is derived from a source: tokenizers and validation windows."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from smet_train.replacing import replacing

log = logging.getLogger(__name__)


_HELD = ("tokenizers", "validation", "backends.json")  # some of these lie in every cache


def default_cache_dir() -> Path:
    """``$SMET_CACHE_DIR``, or else the user's cache folder of this system."""
    chosen = os.environ.get("SMET_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("smet-train")


def own_cache(folder: str | None) -> str | None:
    """A cache folder that settings name which may be somebody else's: None, which is the user's own, with a line that
    says so, where ``folder`` is not one already."""
    if folder is None or any((Path(folder).expanduser() / name).exists() for name in _HELD):
        return folder
    log.warning(
        "data.cache_dir=%s of the run's settings is no cache of smet-train here; the default is taken, write "
        "data.cache_dir= to have it made",
        str(folder)[:200],
    )
    return None


def store(path: Path, write: Callable[[Path], object]) -> None:
    """Put what ``write`` writes at ``path``; a cache that can't be written is only a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            write(part)
    except OSError as error:
        log.warning("can't write the cache %s (%s); going on without", path, error)
