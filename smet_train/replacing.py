"""A file that is there whole, the old one or the new one, whoever reads it and whatever becomes of the writer."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to take the place of ``path``: beside it, under a name that no other writer has.

    At the end of the block it is renamed; after an error it is removed and ``path`` stays as it was. It is not flushed
    to the disk: a power cut may leave an empty ``path``, unless the block calls ``fsync``.

    Raises:
        OSError: if it can't take that place.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
