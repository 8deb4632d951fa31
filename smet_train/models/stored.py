"""Tensors of a folder in safetensors files, one or several, read one at a time; nothing is unpickled."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from smet_train import opening
from smet_train.errors import ConfigError
from smet_train.sparse.coding import read_decoded

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_T = TypeVar("_T")


class StoredTensors:
    """Names, shapes and contents of stored tensors.

    A file is mapped into memory whole, so it is opened for one tensor at a time: all that was read of it counts as
    memory of the process as long as anything of it is in use.

    Args:
        folder: where the files are; messages name it.
        files: the file of each tensor.
    """

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        self.folder = folder
        self._files = files

    @property
    def names(self) -> list[str]:
        """All tensors, in the order of their files' heads."""
        return list(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor ``name``, from the head of its file."""
        return tuple(self._from_file(name, lambda file: file.get_slice(name).get_shape()))

    def read(self, name: str) -> Tensor:
        """The tensor ``name``, on the CPU, in the dtype that it was stored in; its memory is the file's.

        Raises:
            ConfigError: if its file is missing or damaged.
        """
        return self._from_file(name, lambda file: read_decoded(file, [name])[name])

    def _from_file(self, name: str, ask: Callable[[Any], _T]) -> _T:
        path = self._files[name]
        try:
            opening.require_regular(path)
            with safe_open(path, framework="pt") as file:
                return ask(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ConfigError:
    """That a file of the source can't be used."""
    if not path.parent.is_dir():
        return ConfigError(f"model.init_from: {path.parent} was deleted while it was read; type the command again")
    return ConfigError(
        f"model.init_from: {path} can't be read ({opening.what(error)}); fetch or write it again, or give another one"
    )


def stored_tensors(folder: Path) -> StoredTensors:
    """Those of ``model.safetensors`` in ``folder``, or of the shards that ``model.safetensors.index.json`` lists.

    Raises:
        ConfigError: if the file, the list or a shard can't be read.
    """
    single = folder / SINGLE
    if single.is_file():
        try:
            opening.require_regular(single)
            with safe_open(single, framework="pt") as file:
                return StoredTensors(folder, dict.fromkeys(file.keys(), single))
        except (OSError, SafetensorError) as error:
            raise damaged(single, error) from error
    index = folder / INDEX
    try:
        shards = dict(opening.read_object(index)["weight_map"])
        files = {name: folder / opening.plain_name(shard) for name, shard in shards.items()}
    except KeyError as error:
        raise damaged(index, ValueError("it has no weight_map")) from error
    except (OSError, ValueError, TypeError) as error:
        raise damaged(index, error) from error
    return StoredTensors(folder, files)
