"""The model in a checkpoint, of any number of processes, read one tensor at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from smet_train.errors import CheckpointError
from smet_train.models.stored import SINGLE, StoredTensors, damaged, stored_tensors
from smet_train.train.checkpoint import parts_folder

if TYPE_CHECKING:
    from smet_train.train.distributed_checkpoint import StoredParts

_MODEL = "model."


class _SplitModel(StoredTensors):
    """A model of which some tensors were split over processes when they were written."""

    def __init__(self, folder: Path, whole: StoredTensors | None, parts: "StoredParts") -> None:
        super().__init__(folder, {})
        self._whole = whole
        self._parts = parts

    @property
    def names(self) -> list[str]:
        """All tensors."""
        split = [name.removeprefix(_MODEL) for name in self._parts.described if name.startswith(_MODEL)]
        return split + ([] if self._whole is None else self._whole.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor ``name``."""
        if self._whole is not None and name in self._whole:
            return self._whole.shape(name)
        return tuple(self._parts.described[_MODEL + name][0])

    def read(self, name: str) -> Tensor:
        """The tensor ``name``, whole, on the CPU.

        Raises:
            ConfigError: if its file is missing or damaged.
        """
        if self._whole is not None and name in self._whole:
            return self._whole.read(name)
        try:
            return self._parts.read([_MODEL + name])[_MODEL + name]
        except CheckpointError as error:
            raise damaged(self.folder, error) from error


def stored_model(checkpoint: Path) -> StoredTensors:
    """The model's tensors.

    Raises:
        ConfigError: if they can't be read.
    """
    try:
        folder = parts_folder(checkpoint)
        if folder is None:
            return stored_tensors(checkpoint)
        from smet_train.train.distributed_checkpoint import StoredParts

        whole = stored_tensors(checkpoint) if (checkpoint / SINGLE).is_file() else None
        return _SplitModel(checkpoint, whole, StoredParts(folder))
    except (CheckpointError, OSError) as error:
        raise damaged(checkpoint, error) from error
