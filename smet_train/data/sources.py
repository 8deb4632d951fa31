"""Sources of documents, all of them streamed through ``datasets``: one class, opened from a description."""

import glob
import hashlib
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
from datasets import IterableDataset, load_dataset

from smet_train.data import files
from smet_train.data.documents import DocumentStream, Row, State, read_field, read_json_line, read_line, shuffle_shards
from smet_train.data.hub import open_hub
from smet_train.data.python_source import find_python_files, split_source
from smet_train.errors import DataError


@dataclass(frozen=True)
class SourceSpec:
    """What to read; the meaning of each field is the ``data.*`` setting's."""

    kind: str  # python_source, text, jsonl, parquet or hub
    files: tuple[str, ...] = ()  # globs, paths or http(s) URLs, for text, jsonl and parquet
    name: str | None = None  # of the hub data set
    subset: str | None = None  # of the hub data set
    split: str = "train"  # of the hub data set
    text_field: str = "text"  # column of jsonl, parquet and hub
    text_unit: str = "paragraph"  # what is a document in a text file: document, paragraph or line
    skip_bad: bool = False  # leave out bad rows
    longest_document: int = 10_000_000  # characters
    cache_dir: Path | None = None  # of checksums of files


@dataclass(frozen=True)
class Source:
    """An opened source: any number of passes over its documents.

    ``fingerprint`` is a SHA-256 (hex) of what identifies the content: names and checksums of local files, names alone
    of URLs and hub data sets. ``contents`` has them by file. ``description`` is one line for a person.
    """

    fingerprint: str
    description: str
    name: str
    _dataset: bytes = field(repr=False)  # pickled, as datasets' own workers get it
    _read_text: Callable[[Row], str] = field(repr=False)
    _shards: tuple[str, ...] = field(default=(), repr=False)
    contents: Mapping[str, str] = field(default_factory=dict, repr=False)
    _skip_bad: bool = False
    _longest_document: int = 10_000_000

    def documents(self, order: tuple[int, int] | None = None, state: State | None = None) -> DocumentStream:
        """One pass over the documents: shards in order, or permuted by ``order`` = (seed, epoch); from ``state`` on."""
        # Iterables of datasets carry their position, so two passes must not share one. copy.deepcopy fails in a second
        # thread, where opening file systems changes a dictionary that it is copying.
        dataset = pickle.loads(self._dataset)
        if order is not None:
            dataset = shuffle_shards(dataset, order)
        return DocumentStream(
            dataset,
            self._read_text,
            where=self.name,
            shards=self._shards,
            order=order,
            state=state,
            longest=self._longest_document,
            skip_bad=self._skip_bad,
        )


def open_source(spec: SourceSpec) -> Source:
    """Open a source and read its first document, so that most mistakes show before anything is built.

    Raises:
        DataError: naming the setting, file or data set that is missing, unreadable, or without text; ``exit_status``
            is 1 where the network is at fault.
    """
    # Bars of library calls that the user didn't make.
    datasets.disable_progress_bars()
    openers: dict[str, Callable[[SourceSpec], Source]] = {
        "python_source": _open_python_source,
        "text": _open_text,
        "jsonl": _open_jsonl,
        "parquet": _open_parquet,
        "hub": _open_hub_source,
    }
    if spec.kind not in openers:
        raise DataError(f"data.source={spec.kind} is unknown; write one of {', '.join(openers)}")
    source = replace(openers[spec.kind](spec), _skip_bad=spec.skip_bad, _longest_document=spec.longest_document)
    if next(source.documents(), None) is None:
        raise DataError(f"{source.name} holds no text: every document is empty")
    return source


def _open_python_source(spec: SourceSpec) -> Source:
    found = find_python_files()
    # As many shards as files makes a full shuffle; load_dataset takes 15 times as long to open and read them.
    dataset = IterableDataset.from_generator(_read_pieces, gen_kwargs={"paths": list(found.paths)})
    return Source(
        fingerprint=hashlib.sha256(f"{spec.kind} {found.fingerprint}".encode()).hexdigest(),
        contents=found.contents,
        description=f"the Python standard library's source: {len(found.paths)} files, "
        f"{files.human_bytes(found.size_bytes)}",
        name="data.source=python_source",
        _dataset=pickle.dumps(dataset),
        _read_text=read_line,
        _shards=found.paths,
    )


def _read_pieces(paths: list[str]) -> Iterator[Row]:
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for piece in split_source(file.read()):
                yield {"text": piece}


def _open_text(spec: SourceSpec) -> Source:
    return _file_source(spec, _text_files(spec), read_line, sample_by=spec.text_unit)


def _text_files(spec: SourceSpec) -> list[str]:
    names = files.readable_files(_expand(spec), files.check_binary if spec.skip_bad else files.check_text_head)
    files.check_locale(names)
    return names


def _open_jsonl(spec: SourceSpec) -> Source:
    # Lines parsed here, not by datasets' JSON reader: that fixes the columns by the first 10 MB and fails on a record
    # with one column more, hours later.
    return _file_source(spec, _text_files(spec), read_json_line(spec.text_field), sample_by="line")


def _open_parquet(spec: SourceSpec) -> Source:
    names = files.readable_files(_expand(spec), files.check_parquet_head)
    dataset = _load_files("parquet", names)
    dataset, reader = _select(dataset, spec, str(names[0]))
    return _described(spec, names, dataset, reader)


def _open_hub_source(spec: SourceSpec) -> Source:
    if spec.name is None:
        raise DataError("data.source=hub needs data.name, for example data.name=allenai/c4 data.subset=en")
    name = f"hub data set {spec.name}" + (f" ({spec.subset})" if spec.subset else "")
    dataset = open_hub(spec.name, spec.subset, spec.split)
    dataset, reader = _select(dataset, spec, name)
    identity = f"{spec.kind}\0{spec.name}\0{spec.subset}\0{spec.split}\0{spec.text_field}"
    return Source(
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        description=f"{name}, split {spec.split}, streamed from {dataset.num_shards} shards",
        name=name,
        _dataset=pickle.dumps(dataset),
        _read_text=reader,
    )


def _expand(spec: SourceSpec) -> list[str]:
    if not spec.files:
        raise DataError(f"data.source={spec.kind} needs data.files, for example data.files=['corpus/*.txt']")
    return files.expand(spec.files)


def _load_files(builder: str, names: Sequence[str], **settings: str) -> IterableDataset:
    """The streaming dataset over ``names``, one shard a file."""
    patterns = [name if files.is_url(name) else glob.escape(name) for name in names]
    try:
        # The builder's lock file is all that it would leave in the user's cache.
        with tempfile.TemporaryDirectory() as cache_dir:
            return load_dataset(
                builder, data_files=patterns, split="train", streaming=True, cache_dir=cache_dir, **settings
            )
    except Exception as error:  # whatever the reader of the format raises on a damaged first file
        for url in filter(files.is_url, names):
            _check_url(url)
        raise DataError(f"data.files: can't open {names[0]} or its fellows: {error}") from error


def _check_url(url: str) -> None:
    """Raises DataError if ``url`` can't be fetched: datasets says for all reasons that it is unable to find it."""
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError as error:
        raise DataError(f"data.files: {url} answers {error.code} {error.reason}") from error
    except OSError as error:
        raise DataError(
            f"data.files: can't reach {url}: {error}; data.source=text, jsonl and parquet read local files too",
            exit_status=1,
        ) from error


def _select(dataset: IterableDataset, spec: SourceSpec, where: str) -> tuple[IterableDataset, Callable[[Row], str]]:
    """``dataset`` reduced to its text column, and the reader of that."""
    columns: list[str] = dataset.column_names or list(next(iter(pickle.loads(pickle.dumps(dataset))), {}))
    if spec.text_field not in columns:
        raise DataError(
            f"{where} has no column {spec.text_field!r}; write data.text_field=, its columns are {', '.join(columns)}"
        )
    return dataset.select_columns([spec.text_field]), read_field(spec.text_field, columns)


def _file_source(spec: SourceSpec, names: list[str], reader: Callable[[Row], str], sample_by: str) -> Source:
    """Files of text. Where bad rows are left out, bytes that aren't UTF-8 become U+FFFD, by which they are known."""
    errors = {"encoding_errors": "replace"} if spec.skip_bad else {}
    return _described(spec, names, _load_files("text", names, sample_by=sample_by, **errors), reader)


def _described(
    spec: SourceSpec, names: Sequence[str], dataset: IterableDataset, reader: Callable[[Row], str]
) -> Source:
    settings = spec.text_unit if spec.kind == "text" else spec.text_field
    held = files.contents(names, spec.cache_dir)
    return Source(
        fingerprint=files.fingerprint(held, f"{spec.kind} {settings}"),
        description=f"{spec.kind}: {files.describe_files(names)}",
        name=f"data.files={list(spec.files)}",
        _dataset=pickle.dumps(dataset),
        _read_text=reader,
        _shards=tuple(names),
        contents=held,
    )
