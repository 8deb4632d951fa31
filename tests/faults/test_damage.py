"""Checkpoints damaged on disk: found before anything is loaded, told by file and reason, the newest good one used."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from smet_train.errors import CheckpointError
from smet_train.job import run_training
from smet_train.train.checkpoint import _own_checksum
from smet_train.train.resume import choose_checkpoint

STEPS = (2, 4, 6)


@pytest.fixture(scope="module")
def run_folder(quick_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run")
    assert run_training(quick_config("model.layers=1", "checkpoint.interval=2", "train.eval_interval=2"), folder) == 0
    return folder


def some_file(path: Path, draw: Random) -> Path:
    return draw.choice(sorted(path.iterdir()))


def edit(file: Path, change: Callable[[bytearray], object]) -> str:
    content = bytearray(file.read_bytes())
    change(content)
    file.unlink()  # it may be linked to the undamaged one
    file.write_bytes(content)
    return file.name


def flip(path: Path, draw: Random) -> str:
    def one_bit(content: bytearray) -> None:
        place = draw.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8

    return edit(some_file(path, draw), one_bit)


def cut(path: Path, draw: Random) -> str:
    return edit(some_file(path, draw), lambda content: content.__delitem__(slice(draw.randrange(len(content)), None)))


def lengthen(path: Path, draw: Random) -> str:
    return edit(some_file(path, draw), lambda content: content.extend(bytes(draw.randint(1, 5000))))


def zero(path: Path, draw: Random) -> str:
    def fill(content: bytearray) -> None:
        start = draw.choice([place for place in range(0, len(content), max(1, len(content) // 50)) if content[place]])
        content[start : start + 512] = bytes(len(content[start : start + 512]))

    return edit(some_file(path, draw), fill)


def delete(path: Path, draw: Random) -> str:
    file = some_file(path, draw)
    file.unlink()
    return file.name


def swap(path: Path, draw: Random) -> str:
    """A file of another checkpoint of the same run in the place of this one's; topology.safetensors may be alike."""
    name = draw.choice(["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
    other = next(step for step in STEPS if f"{step:08d}" not in path.name)
    source = path.parent.parent / "pristine" / f"step_{other:08d}" / name
    (path / name).unlink()
    shutil.copy(source, path / name)
    return name


def future(path: Path, draw: Random) -> str:  # noqa: ARG001
    file = path / "manifest.json"
    manifest = json.loads(file.read_text()) | {"format": 99}
    manifest.pop("checksum")
    return edit(
        file,
        lambda content: content.__setitem__(
            slice(None), json.dumps({**manifest, "checksum": _own_checksum(manifest)}).encode()
        ),
    )


def no_file(path: Path, draw: Random) -> str:
    """A folder where a file should be."""
    file = some_file(path, draw)
    file.unlink()
    file.mkdir()
    return file.name


def forbid(path: Path, draw: Random) -> str:
    """No permission to read; root, whom no mode keeps out, gets a link to nowhere."""
    file = some_file(path, draw)
    if os.geteuid():
        shutil.copy(file, file.with_suffix(".copy"))
        file.with_suffix(".copy").replace(file)
        file.chmod(0)
    else:
        file.unlink()
        file.symlink_to(path / "nowhere")
    return file.name


DAMAGES = (flip, flip, flip, flip, cut, lengthen, zero, delete, swap, future, no_file, forbid)


@pytest.mark.parametrize("part", range(2))
def test_damage_is_found_and_the_newest_good_checkpoint_used(
    run_folder: Path, tmp_path: Path, campaign: Any, caplog: pytest.LogCaptureFixture, part: int
) -> None:
    pristine = tmp_path / "pristine"
    shutil.copytree(run_folder / "checkpoints", pristine)
    with campaign("damaged checkpoints: found, told, the newest good one used", part=str(part)) as tally:
        for draw in tally.draws(few=60, every=1000):
            shutil.copytree(pristine, tmp_path / "checkpoints", copy_function=os.link)
            damaged = STEPS[-draw.choice([1, 1, 1, 2, 2, 3]) :]
            told = {}
            for step in damaged:
                path = tmp_path / "checkpoints" / f"step_{step:08d}"
                damage = draw.choice(DAMAGES)
                told[path.name] = (damage.__name__, damage(path, draw))
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                tally.note(outcome(tmp_path, told, caplog))
            shutil.rmtree(tmp_path / "checkpoints")


def outcome(folder: Path, told: dict[str, tuple[str, str]], caplog: pytest.LogCaptureFixture) -> str | None:
    """What is wrong with how the damage ``told`` (checkpoint: kind, file) is met, if anything."""
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    if len(told) == len(STEPS):
        try:
            return f"{told}: {choose_checkpoint('auto', folder)} is used"
        except CheckpointError as error:
            lines, silent = [str(error)], {path.name for path in (folder / "checkpoints").iterdir()} != names
    else:
        chosen = choose_checkpoint("auto", folder)
        good = STEPS[-len(told) - 1]
        if chosen is None or chosen.name != f"step_{good:08d}":
            return f"{told}: {chosen} is used"
        lines, silent = [record.getMessage() for record in caplog.records], False
    for name, (kind, file) in told.items():
        # another checkpoint's manifest is told by its step
        if not any(name in line and (file in line or kind == "swap") for line in lines) or silent:
            return f"{told}: {lines}"
    return None if all("\n" not in line for line in lines) else str(lines)


def test_a_folder_under_another_steps_name_is_found(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step_00000006").rename(tmp_path / "checkpoints" / "step_00000009")
    assert choose_checkpoint("auto", tmp_path) == tmp_path / "checkpoints" / "step_00000004"


def test_a_run_goes_on_over_a_broken_checkpoint_to_the_same_end(
    quick_config: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    before = {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}
    edit(newest / "model.safetensors", lambda content: content.__setitem__(-1, content[-1] ^ 1))
    config = quick_config("model.layers=1", "checkpoint.interval=2", "train.eval_interval=2")
    assert run_training(config, tmp_path / "run") == 0
    assert {file.name: file.read_bytes() for file in newest.glob("*.safetensors")} == before
    assert (tmp_path / "run" / "checkpoints" / "broken_00000006").is_dir()
