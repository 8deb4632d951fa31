"""Folders from strangers: every field of every file of another kind, a path, a link or a size. Nothing of theirs is
run, nothing is written outside of the folder, nothing hangs, and what can't be used is told in one message."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NoReturn

import pytest
import torch
import yaml
from rich.console import Console

from smet_train.config.launch import resume
from smet_train.config.schema import Config
from smet_train.errors import SmetError
from smet_train.export.write import export
from smet_train.initial import open_pretrained
from smet_train.job import run_training
from smet_train.models import ModelSpec, build_model
from smet_train.models.sparse_folder import read_sparse
from smet_train.report.report import build_report, write_report
from smet_train.report.runs import find
from smet_train.train.checkpoint import _own_checksum
from smet_train.train.files import read_checksum
from smet_train.trained import open_trained

_LONGEST_S = 60  # a trial takes a tenth of a second, or seconds where a run goes on
_HOLES_BYTES = 1 << 42
_TEXT = '"><script>alert(1)</script> $\\frac{ \x1b[2J =1 https://me:secret@host/?a'

Open = Callable[[Path], object]


class Hang(BaseException):
    """A trial that was still running after a minute."""


@contextmanager
def watched() -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Hang

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folders(
    quick_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[..., Config]]:
    """A run with its checkpoint, and what is exported of it."""
    root = tmp_path_factory.mktemp("folders")
    small = ("model.layers=1", "train.steps=2", "checkpoint.interval=2", "tracking.spike_horizon_steps=3")
    assert run_training(quick_config(*small), root / "run", Console(quiet=True)) == 0
    for kind in ("hf", "sparse"):
        export(root / "run", kind, root / kind)
    return root, lambda *more: quick_config(*small, *more)


class Stranger:
    """A folder that somebody else has changed, in a place of its own, beside what is not to be touched."""

    def __init__(self, root: Path, kind: str, place: Path, draw: Random) -> None:
        self.draw = draw
        self.folder = place / "theirs"
        shutil.copytree(root / kind, self.folder)
        self.outside = place / "outside"
        self.outside.mkdir()
        (self.outside / "victim").write_text("precious")
        (self.outside / "evil.py").write_text(f"open({str(self.outside / 'ran')!r}, 'w')")
        (self.outside / "folder" / "step_00000001").mkdir(parents=True)
        os.mkfifo(self.outside / "pipe")
        self.told = ""
        checkpoints = self.folder / "checkpoints"
        self.checkpoint = next(iter(checkpoints.glob("step_*"))) if checkpoints.is_dir() else None

    def found(self) -> dict[str, str]:
        """What lies outside."""
        entries = sorted(self.outside.rglob("*"))
        return {str(entry): entry.read_text() if entry.is_file() else "" for entry in entries}

    def harm(self) -> None:
        """Change one thing."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        plain = [path for path in files if path.suffix in (".json", ".yaml", ".jsonl")]
        if self.draw.random() < 0.75:
            path = self.draw.choice(plain)
            self.told = f"{path.relative_to(self.folder)}: {self._change_field(path)}"
        else:
            path = self.draw.choice(files)
            self.told = f"{path.relative_to(self.folder)}: {self._change_file(path)}"
        if self.checkpoint is not None and path.name != "manifest.json":
            self._sign()

    def _change_field(self, path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".yaml":
            content = yaml.safe_load(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        else:
            lines = text.splitlines()
            number = self.draw.randrange(len(lines))
            content = json.loads(lines[number])
        name, content = self._changed(content)
        if path.suffix == ".yaml":
            path.write_text(yaml.safe_dump(content), encoding="utf-8")
        elif path.suffix == ".json":
            if path.name == "manifest.json" and isinstance(content, dict):
                content.pop("checksum", None)
                content["checksum"] = _own_checksum(content)
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            lines[number] = json.dumps(content)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return name

    def _changed(self, content: Any) -> tuple[str, Any]:
        """One field of ``content``, however deep, is another value, has another name, or is gone."""
        name, within = "", content
        while isinstance(within, dict | list) and within:
            key = self.draw.choice(list(within) if isinstance(within, dict) else range(len(within)))
            name += f".{key}"
            if not isinstance(within[key], dict | list) or self.draw.random() < 0.15:
                break
            within = within[key]
        if not isinstance(within, dict | list) or not within:
            return "all", self._value()
        what = self.draw.random()
        if what < 0.08:
            del within[key]
            return f"{name} is gone", content
        if what < 0.2 and isinstance(within, dict):
            other = str(self._value())[:500]
            within[other] = within.pop(key)
            return f"{name} is {other[:60]!r}", content
        if what < 0.3 and isinstance(content, dict):
            theirs = {
                "plugins": [str(self.outside / "evil.py")],
                "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
                "_attn_implementation": "somebody/kernel",
                "__class__": "evil",
            }
            added = self.draw.choice(list(theirs))
            content[added] = theirs[added]
            if isinstance(content.get("config"), dict):
                content["config"]["plugins"] = theirs["plugins"]
            return f"{added} is added", content
        within[key] = self._value()
        return f"{name} = {str(within[key])[:60]!r}", content

    def _value(self) -> Any:
        deep: Any = 1
        for _ in range(150):
            deep = [deep]
        paths = ["victim", "pipe", "folder", "evil.py", "new"]
        return self.draw.choice(
            [
                None, True, "", [], {}, [[]], {"a": {}}, "x", _TEXT, -1, 0, 1.5, -1e308, float("nan"), 2**31, 10**9,
                10**18, 1 << 300, deep, "x" * 100_000, list(range(1000)), "../outside/victim",
                "/dev/zero", "/dev/stdin", "${oc.env:HOME}", "https://localhost:1/a?b",
                *(str(self.outside / name) for name in paths),
            ]
        )  # fmt: skip

    def _change_file(self, path: Path) -> str:
        kind = self.draw.choice(
            ["link", "folder link", "device", "pipe", "folder", "holes", "deep", "aliases", "empty"]
        )
        path.unlink()
        if kind == "link":
            path.symlink_to(self.outside / self.draw.choice(["victim", "new", "pipe"]))
        elif kind == "folder link":
            place = path if path.parent == self.folder else path.parent
            place = self.draw.choice(
                [place, self.folder / "checkpoints", self.folder / "report", self.folder / "evals"]
            )
            if place.is_dir():
                shutil.rmtree(place)
                self.checkpoint = None
            place.unlink(missing_ok=True)
            place.symlink_to(self.outside / "folder")
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "holes":
            with path.open("wb") as file:
                file.write(b"{")
                file.truncate(_HOLES_BYTES)
        elif kind == "deep":
            path.write_text("[" * 100_000)
        elif kind == "aliases":
            lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
            path.write_text("a0: &a0 [1]\n" + "\n".join(lines))
        else:
            path.touch()
        return kind

    def _sign(self) -> None:
        """Make the manifest one of the files as they are, as far as it can be."""
        assert self.checkpoint is not None
        manifest = self.checkpoint / "manifest.json"
        if not manifest.is_file() or manifest.stat().st_size > 1 << 20:
            return
        try:
            content = json.loads(manifest.read_text())
            del content["checksum"]
            for name in content["files"]:
                file = self.checkpoint / name
                try:
                    written = read_checksum(file)
                    content["files"][name] = {"n_bytes": written.n_bytes, "checksum": written.checksum}
                except OSError:
                    content["files"][name] = {"n_bytes": file.stat().st_size if file.exists() else 0, "checksum": ""}
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        manifest.write_text(json.dumps({**content, "checksum": _own_checksum(content)}))


def opened_by(kind: str, config: Callable[..., Config], draw: Random) -> tuple[str, Open]:
    """What opens a folder of a kind: one of the ways there are."""

    def train(folder: Path) -> None:
        run_training(config("train.steps=3"), folder, Console(quiet=True))

    def begin(folder: Path) -> None:
        started = config(f"model.init_from='{folder}'", "data.tokenizer.file=null")
        open_pretrained(started)

    def report(folder: Path) -> None:
        write_report(build_report(find([folder])), folder, images=False)

    ways: dict[str, dict[str, Open]] = {
        "run": {
            "evaluation": open_trained,
            "resume": lambda folder: resume(lambda *_: 0, [str(folder), "train.steps=3"]),
            "init_from": begin,
            "report": report,
            "training": train,
        },
        "sparse": {"read_sparse": read_sparse, "init_from": begin},
        "hf": {
            "init_from": begin,
            "config_file": lambda folder: build_model(
                ModelSpec("auto", 0, 0, 0, 0, config_file=str(folder / "config.json")),
                vocab_size=20,
                sequence_tokens=8,
                eos_id=0,
                seed=1,
            ),
        },
    }
    name = draw.choice(list(ways[kind]))
    return name, ways[kind][name]


@pytest.mark.parametrize("kind", ["run", "sparse", "hf"])
def test_folders_from_strangers(
    folders: tuple[Path, Callable[..., Config]],
    campaign: Any,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, config = folders
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    few, every = {"run": (12, 600), "sparse": (5, 200), "hf": (5, 200)}[kind]
    with campaign("folders from strangers: nothing run, written outside, or hung", unit="s", part=kind) as tally:
        for number, draw in enumerate(tally.draws(few=few, every=every)):
            place = tmp_path / str(number)
            place.mkdir()
            monkeypatch.chdir(place)
            stranger = Stranger(root, kind, place, draw)
            before = stranger.found()
            stranger.harm()
            way, open_it = opened_by(kind, config, draw)
            started_s = time.monotonic()
            failure = None
            try:
                with watched():
                    open_it(stranger.folder)
            except SmetError as error:
                failure = f"{len(str(error))} characters" if len(str(error)) > 3000 else None
            except Hang:
                failure = "it hangs"
            except Exception as error:
                failure = f"{type(error).__name__}: {str(error)[:200]}"
            if stranger.found() != before:
                failure = f"outside there is {sorted(set(stranger.found().items()) ^ set(before.items()))}"
            told = None if failure is None else f"{way}, {stranger.told}: {failure}"
            tally.note(told, time.monotonic() - started_s)
            shutil.rmtree(place)


def test_a_healthy_folder_of_each_kind_is_opened(folders: tuple[Path, Callable[..., Config]], tmp_path: Path) -> None:
    """Else no trial could fail."""
    root, config = folders
    for kind in ("run", "sparse", "hf"):
        ways = {name: way for seed in range(60) for name, way in [opened_by(kind, config, Random(seed))]}
        assert len(ways) == {"run": 5, "sparse": 2, "hf": 2}[kind]
        for name, way in ways.items():
            folder = tmp_path / f"{kind} {name}"
            shutil.copytree(root / kind, folder)
            way(folder)
    assert torch.is_grad_enabled()
