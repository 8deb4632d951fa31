"""Where documents come from: every source becomes one streamed data set with the same columns."""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import IterableDataset, load_dataset

from smet_train.data.files import check_file, expand, fingerprint, is_url, standard_library_files
from smet_train.errors import DataError

datasets.disable_progress_bars()
# Its warnings speak of a shuffle buffer that is not used here, and of retries that our own errors report.
datasets.logging.set_verbosity_error()

_BUILDERS = {"text": "text", "jsonl": "json", "parquet": "parquet"}
_LOCAL_HINT = "data=python_source needs no network, data=text, jsonl or parquet reads local files"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source as the configuration names it: ``kind`` is python_source, text, jsonl, parquet or hub."""

    kind: str
    files: tuple[str, ...] = ()
    name: str | None = None
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    text_unit: str = "paragraph"


class Source:
    """A streamed data set of documents.

    ``fingerprint`` changes when the data do; ``description`` is one line for a person.
    """

    def __init__(self, spec: SourceSpec, stream: IterableDataset, fingerprint: str, description: str) -> None:
        self.fingerprint = fingerprint
        self.description = description
        self._field = "text" if spec.kind in ("python_source", "text") else spec.text_field
        self._remote = spec.kind == "hub" or any(is_url(name) for name in spec.files)
        self._stream = stream

    def epoch(self, seed: int | None, epoch: int) -> IterableDataset:
        """The data set for one pass; the order of its shards is a function of (seed, epoch), or as it is for None.

        Documents inside a shard keep their order: a shuffle buffer's content could not be resumed exactly.
        """
        stream = copy.deepcopy(self._stream)  # a stream remembers a loaded position; passes must not share one
        if seed is not None:
            stream = stream.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        stream.set_epoch(epoch)
        return stream

    def texts(self, stream: IterableDataset) -> Iterator[str]:
        """The documents of a pass.

        Raises:
            DataError: if a row has no text under the field's name, or reading fails.
        """
        rows = iter(stream)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                # Builders and file systems raise their own types; each is a failure to read this source.
                raise DataError(
                    f"{self.description}: reading failed: {_first_line(error)}", exit_status=1 if self._remote else 2
                ) from error
            yield self._text(row)

    def _text(self, row: dict[str, Any]) -> str:
        text = row.get(self._field)
        if not isinstance(text, str):
            found = "nothing" if text is None else f"a {type(text).__name__}"
            raise DataError(
                f"{self.description}: a row has {found} under data.text_field={self._field}; its fields are "
                f"{', '.join(row)}"
            )
        return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _read_whole_files(paths: Sequence[str]) -> Iterator[dict[str, str]]:
    for path in paths:
        yield {"text": Path(path).read_text(encoding="utf-8")}


def _python_source() -> Source:
    files = standard_library_files()
    if not files:
        raise DataError("data=python_source: this Python has no source files of its standard library; use data=text")
    # One shard a file, so that shuffling the shards shuffles the documents.
    stream = IterableDataset.from_generator(_read_whole_files, gen_kwargs={"paths": files})
    size = sum(os.path.getsize(file) for file in files)
    spec = SourceSpec("python_source")
    description = f"python_source: {len(files)} files of the standard library, {size / 1e6:.1f} MB"
    return Source(spec, stream, fingerprint(["python_source"], files), description)


def _files_source(spec: SourceSpec) -> Source:
    files = expand(spec.files)
    local = [name for name in files if not is_url(name)]
    for name in local:
        check_file(name, is_text=spec.kind in ("text", "jsonl"))
    extra = {"sample_by": spec.text_unit} if spec.kind == "text" else {}
    try:
        stream = load_dataset(_BUILDERS[spec.kind], data_files=files, split="train", streaming=True, **extra)
    except (Exception, StopIteration) as error:
        raise DataError(
            f"data={spec.kind}: {files[0]} and {len(files) - 1} more cannot be opened: {_first_line(error)}",
            exit_status=2 if local else 1,
        ) from error
    size = sum(os.path.getsize(name) for name in local)
    amount = f", {size / 1e6:.1f} MB" if len(local) == len(files) else ""
    facts = [spec.kind, spec.text_field, spec.text_unit]
    return Source(spec, stream, fingerprint(facts, files), f"{spec.kind}: {len(files)} files{amount}")


def _hub_source(spec: SourceSpec) -> Source:
    assert spec.name is not None
    try:
        stream = load_dataset(spec.name, spec.subset, split=spec.split, streaming=True)
    except Exception as error:
        raise DataError(
            f"data.name={spec.name}: the data set cannot be opened: {_first_line(error)}; without a network, "
            f"{_LOCAL_HINT}",
            exit_status=1,
        ) from error
    facts = ["hub", spec.name, spec.subset or "", spec.split, spec.text_field]
    return Source(spec, stream, fingerprint(facts, []), f"hub: {spec.name} {spec.subset or ''} {spec.split}")


def open_source(spec: SourceSpec) -> Source:
    """Check and open a source.

    Raises:
        DataError: if a file is missing, empty, or not what it should be; with exit status 1 if the hub can't be
            reached.
    """
    if spec.kind == "python_source":
        return _python_source()
    if spec.kind == "hub":
        return _hub_source(spec)
    return _files_source(spec)
