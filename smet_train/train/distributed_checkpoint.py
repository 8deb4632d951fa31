"""Tensors that are split over processes, on disk in torch's distributed format: each process writes and reads its own.

Files and their layout are those of ``torch.distributed.checkpoint``, which any program with torch can read; what is
added is that they go through :mod:`smet_train.train.files`, which hashes and flushes them, and that their description,
a pickle, may name nothing but what a description is made of. Only who meets such a checkpoint imports this module.
"""

import io
import math
import pickle
import pickletools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from smet_train import opening
from smet_train.errors import CheckpointError, ConfigError
from smet_train.sparse.shards import as_split, is_sharded, local
from smet_train.train import files
from smet_train.train.files import Written
from smet_train.train.processes import Processes, lost_process_told

_DESCRIPTION = ".metadata"
# All that the description of tensors names, beside the dtypes.
_DESCRIBES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def write_parts(folder: Path, split: Mapping[str, tuple[Tensor, Tensor]], processes: Processes) -> dict[str, Written]:
    """Write this process's part of each tensor into ``folder``, flushed; all processes take part.

    Args:
        folder: empty, made by the leading process.
        split: DTensors, which say how they are split, and what this process has of each.

    Returns:
        The files that all processes have written.

    Raises:
        ConfigError: in all processes, if one of them does not see the folder.
        OSError: in all processes, if one of them can't write.
    """

    def see() -> None:
        if not folder.is_dir():
            raise ConfigError(
                f"process {processes.rank} does not see {folder}, which process 0 has made: with train.parallel=fsdp "
                "every process writes its part; let hydra.run.dir= be on a file system that all machines see",
                exit_status=1,
            )

    processes.each(see)
    system = _Flushed()
    # `system` flushes; copied one by one, as otherwise every process with a GPU in sight would take some of its memory
    writer = _Writer(folder, sync_files=False, per_thread_copy_ahead=0)
    writer.fs = system
    whole, held = ({name: pair[place] for name, pair in split.items()} for place in (0, 1))
    with lost_process_told(), _told_by_the_first():
        save(whole, storage_writer=writer, planner=_Parts(held), process_group=processes.group)
    return {name: file for written in processes.each(lambda: system.written) for name, file in written.items()}


class _Parts(DefaultSavePlanner):
    """What is written of a tensor is what is ``held``, which may be a copy of its part."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._held = held

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """As torch calls it."""
        return self._held[index.fqn]


class _Writer(FileSystemWriter):
    """Leaves out of the description where it was written, under which name nothing lies for long, and when."""

    def storage_meta(self) -> StorageMeta:
        """As torch calls it."""
        return StorageMeta()


class _Flushed(FileSystem):
    """New files, flushed.

    Attributes:
        written: what they must be, by name.
    """

    def __init__(self) -> None:
        self.written: dict[str, Written] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        """A new file; torch closes it."""
        assert mode == "wb"
        stream = _NewFile(path)
        try:
            yield stream
        except RuntimeError as error:
            if stream.failure is None:
                raise
            raise stream.failure from error  # torch.save has nothing to say of it
        finally:
            stream.close()
        files.disk.sync(path)
        self.written[path.name] = stream.written

    def rename(self, path: Any, new_path: Any) -> None:
        """Rename a file."""
        files.disk.rename(path, new_path)
        self.written[new_path.name] = self.written.pop(path.name)

    def mkdir(self, path: Any) -> None:
        """The leading process has made the folder."""


class _NewFile(io.RawIOBase):
    """A new file that is hashed on the way.

    Attributes:
        failure: what the disk has answered last, if it was an error.
    """

    def __init__(self, path: Path) -> None:
        self._file = files.disk.create(path)
        self._digest = xxhash.xxh3_128()
        self._n_bytes = 0
        self.failure: OSError | None = None

    @property
    def written(self) -> Written:
        """What the file must be."""
        return Written(self._n_bytes, self._digest.hexdigest())

    def write(self, part: Any) -> int:
        """Write all of ``part``."""
        content = memoryview(part).cast("B")
        try:
            files.write_all(self._file, content)
        except OSError as error:
            self.failure = error
            raise
        self._digest.update(content)
        self._n_bytes += len(content)
        return len(content)

    def tell(self) -> int:
        """Bytes written."""
        return self._n_bytes

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@contextmanager
def _told_by_the_first() -> Iterator[None]:
    """Inside, what torch tells of all processes that failed is the error of the first of them."""
    try:
        yield
    except CheckpointException as error:
        raise _first_failure(error) from error


def _first_failure(error: CheckpointException) -> BaseException:
    failure, _ = next(iter(error.failures.values()))
    return failure


class StoredParts:
    """Tensors in torch's distributed format, of any number of processes.

    Attributes:
        described: shape and dtype of each.

    Raises:
        OSError: if their description can't be read.
        CheckpointError: if it holds what no description of tensors does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metadata, self.described = _read_description(folder)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Each of ``names`` whole, on the CPU.

        Raises:
            CheckpointError: if a file is not as it was written.
        """
        wholes = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in self._of(names)}
        self._fill(wholes)
        return wholes

    def read_into(self, names: Collection[str], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors ``names``. Of one that has its like among ``targets``, and is split there, the part of this
        process is read, and into that target, or into one of its own where the dtypes differ; others are whole. One
        that is of another shape than its like is not read at all, as it is of no use: it has no memory.

        Raises:
            CheckpointError: as :meth:`read`.
        """
        split = {name: targets[name] for name in names if name in targets and is_sharded(targets[name])}
        fitting = {
            name: held if held.dtype == dtype else as_split(local(held).to(dtype), held)
            for name, held in split.items()
            for shape, dtype in [self.described[name]]
            if held.shape == shape
        }
        self._fill(fitting)
        unfit = split.keys() - fitting.keys()
        shells = {name: torch.empty(size, dtype=dtype, device="meta") for name, (size, dtype) in self._of(unfit)}
        return fitting | shells | self.read([name for name in names if name not in split])

    def _of(self, names: Iterable[str]) -> Iterator[tuple[str, tuple[torch.Size, torch.dtype]]]:
        return ((name, self.described[name]) for name in names)

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        """Read what this process holds of ``tensors``; no other process takes part."""
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is ")
                load(tensors, storage_reader=_Reader(self._folder, self._metadata), planner=planner, no_dist=True)
        except CheckpointException as error:
            raise CheckpointError(f"{self._folder.name} can't be read ({_first_failure(error)})") from error


class _Reader(FileSystemReader):
    """Reads what a description says, which has been read already."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *_args: Any, **_named: Any) -> Metadata:
        """As torch calls it."""
        return self._metadata


class _DescriptionUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name.

        Raises:
            UnpicklingError: if it names something else.
        """
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        known = (module, name) in _DESCRIBES
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no known torch does")


def _memory_format(kind: object, name: str) -> Any:
    """What Python before 3.11.4 pickles a member of an enumeration as: an attribute of it.

    Raises:
        UnpicklingError: if it is another attribute than that.
    """
    if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise pickle.UnpicklingError(f"it names {name!r} of {kind!r}, which no known torch does")
    return _MEM_FORMAT_ENCODING[name]


def _read_description(folder: Path) -> tuple[Metadata, dict[str, tuple[torch.Size, torch.dtype]]]:
    """The description that lies in ``folder``; shape and dtype of each tensor."""
    told = f"{folder.name}/{_DESCRIPTION} does not describe tensors"
    content = opening.read_bytes(folder / _DESCRIPTION)
    try:
        _check_memory(content)
        metadata = _DescriptionUnpickler(io.BytesIO(content)).load()
        stored = dict(metadata.state_dict_metadata)
    except Exception as error:  # bytes that are no pickle raise anything
        raise CheckpointError(f"{told} ({opening.what(error)})") from error
    if not all(isinstance(item, TensorStorageMetadata) for item in stored.values()):
        raise CheckpointError(f"{told} alone")
    with opening.malformed(f"{folder.name}/{_DESCRIPTION}", CheckpointError, "take another checkpoint"):
        described = {name: (torch.Size(item.size), item.properties.dtype) for name, item in stored.items()}
        needed = sum(math.prod(size) * dtype.itemsize for size, dtype in described.values())
        negative = any(side < 0 for size, _ in described.values() for side in size)
        names = {opening.plain_name(part.relative_path) for part in (metadata.storage_data or {}).values()}
    for name in names:
        opening.require_regular(folder / name)
    held = sum((folder / name).stat().st_size for name in names)
    if negative or needed > held:
        raise CheckpointError(f"{told}: it tells of {needed:,} bytes, and its files have {held:,}")
    return metadata, described


def _check_memory(content: bytes) -> None:
    """A pickle numbers what it holds, and Python makes room for the largest number at once.

    Raises:
        ValueError: if there are more numbers than bytes; or what pickletools says of what is no pickle.
    """
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise ValueError(f"it numbers what it holds up to {argument}")
