"""Going on in data that have changed or fail: nothing hangs, nothing that was trained is lost."""

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smet_train.config.schema import Config
from smet_train.data import retry
from smet_train.data.sources import SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events
from smet_train.train import loop
from tests.data.serving import Server, serve

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serve(tmp_path / "www") as running:
        yield running


def opened(path: Path, tokenizer: TextTokenizer, shuffle: int, kind: str = "text") -> TokenWindows:
    return TokenWindows(
        open_source(SourceSpec(kind, files=(str(path),), text_unit="line")),
        tokenizer,
        sequence_tokens=7,
        seed=1,
        shuffle_documents=shuffle,
        validation_fraction=0.001,
        allow_changed_source=True,
    )


@pytest.mark.parametrize("shuffle", [1, 30, 1000])
@pytest.mark.parametrize(
    "shorter",
    [["one line"], [str(number) for number in range(60)], ["", "", *(str(number) for number in range(31))]],
    ids=["one document", "short documents", "fewer short documents"],
)
def test_a_position_beyond_what_has_become_shorter_goes_on(
    tmp_path: Path, tokenizer: TextTokenizer, documents: Callable[..., list[str]], shorter: list[str], shuffle: int
) -> None:
    """The document, or the token in it, where the position was is not there any more."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(documents(60)))
    stream = opened(path, tokenizer, shuffle)
    states = [json.dumps([next(stream), stream.state_dict()][1]) for _ in range(200)]
    path.write_text("\n".join(shorter))
    for state in states[::13]:
        changed = opened(path, tokenizer, shuffle)
        changed.load_state_dict(json.loads(state))
        assert all(len(window) == 8 for window in islice(changed, 200))


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_place_in_an_edited_file_is_found_by_its_line(
    tmp_path: Path, tokenizer: TextTokenizer, documents: Callable[..., list[str]], kind: str
) -> None:
    """Not by its bytes, where half a line would be read."""
    texts = documents(600)

    def write(first: str) -> None:
        lines = [json.dumps({"text": text}) if kind == "jsonl" else text for text in [first, *texts[1:]]]
        (tmp_path / "a").write_text("\n".join(lines))

    write(texts[0])
    stream = opened(tmp_path / "a", tokenizer, 1, kind)
    while stream.state_dict()["block"] < 2:
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    wanted = list(islice(stream, 50))
    write("a beginning of another length " * 3)
    changed = opened(tmp_path / "a", tokenizer, 1, kind)
    changed.load_state_dict(state)
    assert list(islice(changed, 50)) == wanted


@pytest.mark.parametrize("shuffle", [1, 20])
@pytest.mark.parametrize("comes", ["2024/new.txt", "other/deep/new.txt", "2023/part/new.txt"])
def test_files_from_another_folder_leave_the_pass_through_the_others_as_it_is(
    tmp_path: Path, documents: Callable[..., list[str]], comes: str, shuffle: int
) -> None:
    """The folder that all files share becomes a wider one, and a narrower one again when they go."""
    texts = documents(400)
    (tmp_path / "2023" / "part").mkdir(parents=True)
    for number in range(8):
        (tmp_path / "2023" / "part" / f"{number}.txt").write_text("\n".join(texts[number * 40 : number * 40 + 40]))
    added = [f"{text} added" for text in texts[320:360]]

    def spec() -> SourceSpec:
        return SourceSpec("text", files=(f"{tmp_path}/**/*.txt",), text_unit="line")

    order = (1, 0) if shuffle > 1 else None
    source = open_source(spec())
    whole = list(source.documents(order))
    begun = source.documents(order)
    head = list(islice(begun, 150))
    files, state = json.loads(json.dumps([source.files, begun.state_dict()]))
    assert head == whole[:150]

    (tmp_path / comes).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / comes).write_text("\n".join(added))
    wider = open_source(spec())
    assert wider.change_since(files) == f"{os.path.relpath(tmp_path / comes, tmp_path / '2023' / 'part')} is new"
    rest = list(wider.documents(order, state))
    assert [text for text in rest if not text.endswith(" added")] == whole[150:]
    again = wider.documents(order, state)
    list(islice(again, 30))
    files, state = json.loads(json.dumps([wider.files, again.state_dict()]))
    same = open_source(spec())
    assert same.change_since(files) is None
    assert list(same.documents(order, state)) == rest[30:]

    (tmp_path / comes).unlink()
    narrower = open_source(spec())
    assert str(narrower.change_since(files)).endswith("new.txt is missing")
    left = list(narrower.documents(order, state))
    assert left == [text for text in rest[30:] if not text.endswith(" added")]


def served_config(make: QuickConfig, server: Server, documents: Callable[..., list[str]], *overrides: str) -> Config:
    """A run on 50 small files; little is read before the training."""
    texts = documents(300)
    for number in range(50):
        (server.folder / f"{number}.txt").write_text("\n".join(texts[number * 6 : number * 6 + 6]))
    urls = ",".join(f"'{server.url}/{number}.txt'" for number in range(50))
    few = ["train.eval_windows=1", "data.validation_fraction=0.3", "data.tokenizer.train_bytes=500"]
    return make(f"data.files=[{urls}]", "data.shuffle_documents=10", "data.prefetch_batches=1", *few, *overrides)


def fail_after_a_step(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    report_step = loop.report_step

    def report_and_fail(*facts: Any) -> None:
        report_step(*facts)
        server.get_status = 503

    monkeypatch.setattr(loop, "report_step", report_and_fail)


def test_a_stop_is_obeyed_while_a_source_keeps_a_run_waiting(
    quick_config: QuickConfig,
    server: Server,
    documents: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(retry, "_LONGEST_WAIT_S", 1000.0)
    config = served_config(quick_config, server, documents, "train.steps=1000", "train.batch_size=16")
    fail_after_a_step(server, monkeypatch)
    wait = retry.Retries.wait
    stops: list[threading.Timer] = []

    def wait_and_stop(*facts: Any) -> None:
        if not stops:
            stops.append(threading.Timer(0.2, signal.raise_signal, [signal.SIGTERM]))
            stops[0].start()
        wait(*facts)

    monkeypatch.setattr(retry.Retries, "wait", wait_and_stop)
    assert run_training(config, tmp_path / "run", Console(file=io.StringIO())) == 0
    end = read_events(tmp_path / "run" / "metrics.jsonl")[-1]
    assert (end["event"], end["reason"]) == ("end", "SIGTERM")
    assert (tmp_path / "run" / "checkpoints" / f"step_{end['step']:08d}").is_dir()


def test_an_update_that_looks_at_batches_which_do_not_come_leaves_a_saved_state(
    quick_config: QuickConfig,
    server: Server,
    documents: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The coming step's own batches are there; those of the steps after it, which the update also looks at, are not."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    own = ["method=smet_rigl", "topology.probe_steps=40", "checkpoint.interval=0", "topology.interval=2"]
    config = served_config(quick_config, server, documents, *own)
    fail_after_a_step(server, monkeypatch)
    with pytest.raises(DataError, match=r"503"):
        run_training(config, tmp_path / "run", Console(file=io.StringIO()))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
