"""Sources of documents: one class, opened from a description."""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smet_train.data import files
from smet_train.data.documents import DocumentStream, State
from smet_train.data.manifest import Manifest, find_change, take_manifest
from smet_train.data.python_source import find_python_files
from smet_train.data.records import FileReader, by_count, jsonl_reader, parquet_reader, python_reader, text_reader
from smet_train.data.rules import ReadRules
from smet_train.data.sequence import SequenceStream
from smet_train.data.shards import FileSet, ShardStream
from smet_train.errors import DataError, SmetError


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
    rules: ReadRules = field(default_factory=ReadRules)
    allow_changed_source: bool = False


Opener = Callable[[tuple[int, int] | None, State | None], DocumentStream]


@dataclass(frozen=True)
class Source:
    """An opened source: any number of passes over its documents.

    ``identity`` is a SHA-256 (hex) of what is read and how, ``files`` what is known of its files' contents (see
    Manifest.packed; None for the hub, where the name is all), ``fingerprint`` a SHA-256 of both. ``rules`` say which
    documents are left out. ``is_known``: its ``fingerprint`` changes with its documents, so that what is made of them
    can be kept. ``description`` is one line for a person.
    """

    identity: str
    description: str
    name: str
    rules: ReadRules
    _open: Opener = field(repr=False)
    _files: FileSet | None = field(default=None, repr=False)
    _retake: Callable[[bool], Manifest] | None = field(default=None, repr=False)
    _in_lines: bool = field(default=False, repr=False)
    is_known: bool = True

    @property
    def files(self) -> dict[str, Any] | None:
        """What the files were (name, bytes, hash of the content) in plain values, for a checkpoint; None for a source
        without files."""
        return None if self._files is None else self._files.manifest.packed

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with the source or the content of its files: what caches are named by."""
        digest = "" if self._files is None else self._files.manifest.digest
        return hashlib.sha256(f"{self.identity} {digest}".encode()).hexdigest()

    def documents(self, order: tuple[int, int] | None = None, state: State | None = None) -> DocumentStream:
        """One pass over the documents: shards in order, or permuted by ``order`` = (seed, epoch); from ``state`` on."""
        return self._open(order, state)

    def by_count(self, state: State) -> State:
        """``state`` of a pass over files whose contents were others: in lines its place is found by counting them."""
        return {**state, "at": by_count(state["at"])} if self._in_lines else state

    def change_since(self, saved: dict[str, Any] | None) -> str | None:
        """What of the files has changed since ``saved`` was their ``files``, naming one; None if nothing has.

        From here on they have the names that they had then.
        """
        if saved is None or self._files is None or self._retake is None:
            return None
        self._files.manifest = self._files.manifest.named_like(saved)
        return find_change(saved, self._files.manifest, self._retake)


def open_source(spec: SourceSpec, cache_dir: Path | None = None) -> Source:
    """Open a source and read its first document, so that most mistakes show before anything is built.

    Args:
        cache_dir: where hashes of files are remembered; None: nowhere.

    Raises:
        DataError: naming the setting, file or data set that is missing, unreadable, or without text; ``exit_status``
            is 1 where the network is at fault.
    """
    if spec.kind not in SOURCES:
        raise DataError(
            f"data.source={spec.kind} is unknown here; write one of {', '.join(SOURCES)}, or, if a plugin gave it, "
            "name the plugin: plugins=[FILE] of smet-train, --plugins FILE of smet-eval"
        )
    source = SOURCES[spec.kind](spec, cache_dir)
    documents = source.documents()
    if next(documents, None) is None:
        last = getattr(documents, "last_fault", "")
        raise DataError(f"{source.name} holds no text: every document is empty{last and f' or bad; the last: {last}'}")
    return source


def _open_python_source(spec: SourceSpec, cache_dir: Path | None) -> Source:
    found = find_python_files()
    description = (
        f"the Python standard library's source: {len(found.paths)} files, {files.human_bytes(found.size_bytes)}"
    )
    return _file_source(
        spec,
        found.paths,
        python_reader,
        cache_dir,
        lambda at: f"piece {at[0]}",
        "data.source=python_source",
        description,
    )


def _open_text(spec: SourceSpec, cache_dir: Path | None) -> Source:
    names = files.readable_files(_expand(spec), None if _skips(spec) else files.check_text_head)
    reader = text_reader(spec.text_unit, spec.rules.max_document_bytes)
    return _file_source(spec, names, reader, cache_dir, _line, settings=spec.text_unit)


def _open_jsonl(spec: SourceSpec, cache_dir: Path | None) -> Source:
    names = files.readable_files(_expand(spec), None if _skips(spec) else files.check_text_head)
    reader = jsonl_reader(spec.text_field, spec.rules.max_document_bytes)
    return _file_source(spec, names, reader, cache_dir, _line, settings=spec.text_field)


def _open_parquet(spec: SourceSpec, cache_dir: Path | None) -> Source:
    names = files.readable_files(_expand(spec), None if _skips(spec) else files.check_parquet_head)
    reader = parquet_reader(spec.text_field, spec.rules.max_document_bytes)
    place = lambda at: f"row group {at[0] + 1}, row {at[1]}"  # noqa: E731
    return _file_source(spec, names, reader, cache_dir, place, settings=spec.text_field)


def _line(at: list[int]) -> str:
    return f"line {at[1]}"


def _skips(spec: SourceSpec) -> bool:
    """Whether a file with a bad beginning is left out when its turn comes, instead of refused at once."""
    return spec.rules.on_bad == "skip"


def _file_source(
    spec: SourceSpec,
    paths: Sequence[str],
    reader: FileReader,
    cache_dir: Path | None,
    place: Callable[[list[int]], str],
    name: str | None = None,
    description: str | None = None,
    settings: str = "",
) -> Source:
    def take(sampled: bool | None) -> Manifest:
        try:
            return take_manifest(paths, cache_dir, spec.rules.retries, sampled)
        except OSError as error:
            raise DataError(f"data.files: {error}", exit_status=1) from error

    name = name or f"data.files={list(spec.files)}"
    opened = FileSet(name, paths, take(None), reader, spec.rules, place, spec.allow_changed_source)
    opened.watch()
    return Source(
        identity=hashlib.sha256(f"{spec.kind} {settings}".encode()).hexdigest(),
        description=description or f"{spec.kind}: {files.describe_files(paths)}",
        name=name,
        rules=spec.rules,
        _open=lambda order, state: ShardStream(opened, order, state),
        _files=opened,
        _retake=take,
        _in_lines=spec.kind in ("text", "jsonl"),
    )


def _open_hub_source(spec: SourceSpec, _cache_dir: Path | None) -> Source:
    if spec.name is None:
        raise DataError("data.source=hub needs data.name, for example data.name=allenai/c4 data.subset=en")
    import datasets  # takes most of a second, and is for the hub alone

    from smet_train.data.hub import HubStream, open_hub, shuffle_shards

    datasets.disable_progress_bars()  # of library calls that the user didn't make
    name = f"hub data set {spec.name}" + (f" ({spec.subset})" if spec.subset else "")
    dataset, columns = open_hub(spec.name, spec.subset, spec.split, spec.text_field)
    told: set[str] = set()
    packed = pickle.dumps(dataset)

    def make(order: tuple[int, int] | None) -> datasets.IterableDataset:
        # Iterables of datasets carry their position, so two passes must not share one. copy.deepcopy fails in a second
        # thread, where opening file systems changes a dictionary that it is copying.
        fresh = pickle.loads(packed)
        return fresh if order is None else shuffle_shards(fresh, order)

    return Source(
        identity=hashlib.sha256(
            f"{spec.kind}\0{spec.name}\0{spec.subset}\0{spec.split}\0{spec.text_field}".encode()
        ).hexdigest(),
        description=f"{name}, split {spec.split}, streamed from {dataset.num_shards} shards",
        name=name,
        rules=spec.rules,
        _open=lambda order, state: HubStream(
            lambda: make(order),
            field=spec.text_field,
            columns=columns,
            name=name,
            rules=spec.rules,
            told=told,
            state=state,
        ),
    )


def _expand(spec: SourceSpec) -> list[str]:
    if not spec.files:
        raise DataError(f"data.source={spec.kind} needs data.files, for example data.files=['corpus/*.txt']")
    return files.expand(spec.files)


SOURCES: dict[str, Callable[[SourceSpec, Path | None], Source]] = {
    "python_source": _open_python_source,
    "text": _open_text,
    "jsonl": _open_jsonl,
    "parquet": _open_parquet,
    "hub": _open_hub_source,
}


def register_source(name: str, documents: Callable[[SourceSpec], Sequence[str]]) -> None:
    """Let ``data.source`` name a source of your own.

    Args:
        documents: from the ``data.*`` settings, ``data.files`` as absolute paths, anything with ``len()`` and ``[i]``
            that gives a text; read one at a time, from a second thread. Positions are numbers of documents, so a run
            goes on exactly.

    Raises:
        DataError: if the name is taken.
    """
    if name in SOURCES:
        raise DataError(f"there is a source data.source={name} already; give yours another name")

    def opened(spec: SourceSpec, _cache_dir: Path | None) -> Source:
        try:
            held = documents(spec)
            count = len(held)
        except SmetError:
            raise
        except Exception as error:  # the boundary to code that is not ours
            raise DataError(
                f"data.source={name}: its code ended by {type(error).__name__}: {error}", exit_status=1
            ) from error
        told: set[str] = set()
        read = (spec.kind, count, spec.files, spec.name, spec.subset, spec.split, spec.text_field, spec.text_unit)
        return Source(
            identity=hashlib.sha256(repr(read).encode()).hexdigest(),
            description=f"{name}: {count:,} documents",
            name=f"data.source={name}",
            rules=spec.rules,
            is_known=False,  # what its code gives may change behind the same settings
            _open=lambda _order, state: SequenceStream(held, count, f"data.source={name}", spec.rules, told, state),
        )

    SOURCES[name] = opened
