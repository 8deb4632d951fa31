"""A run that is resumed with one setting changed: refused with both values, or trained and written down."""

import json
import os
import shutil
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from smet_train.config.continuation import CHANGEABLE_KEYS, FIXED_KEYS
from smet_train.config.fields import Leaf, leaves, matches, spell, value_at
from smet_train.config.launch import resume
from smet_train.config.paths import with_absolute_paths
from smet_train.config.schema import Config
from smet_train.errors import SmetError
from smet_train.job import run_training
from tests.faults.conftest import CampaignMaker
from tests.faults.trials import trace

pytestmark = pytest.mark.slow

STEPS = 7  # the last save is not one of those every 3 steps
NAME = "resume with a changed setting"
FIXED = [leaf for leaf in leaves(Config()) if matches(leaf.key, FIXED_KEYS)]
# A value of each setting that may change, other than the run's; {here} has a copy of the data.
CHANGED = {
    "train.steps": "8",
    "plugins": "[json]",
    "train.device": "cpu",
    "train.activation_checkpointing": "true",
    "train.fused_backward_step": "true",
    "train.release_freed_memory": "true",
    "train.deterministic": "true",
    "train.max_hours": "10",
    "train.max_bad_steps": "1",
    "train.max_silence_minutes": "1",
    "checkpoint.follow_link": "true",
    "train.max_rollbacks": "1",
    "train.max_loss_rise": "9",
    "train.eval_interval": "2",
    "train.log_interval": "3",
    "checkpoint.interval": "1",
    "checkpoint.keep": "1",
    "checkpoint.keep_every": "2",
    "checkpoint.asynchronous": "true",
    "checkpoint.on_error": "warn",
    "checkpoint.verify": "full",
    "checkpoint.resume": "{run}/checkpoints/step_00000003",
    "tracking.wandb": "offline",
    "tracking.wandb_project": "another",
    "tracking.wandb_entity": "team",
    "tracking.wandb_group": "group",
    "tracking.wandb_tags": "[first,second]",
    "tracking.tensorboard": "true",
    "tracking.spike_horizon_steps": "5",
    "tracking.spike_baseline_steps": "3",
    "tracking.exploration": "false",
    "tracking.probe_windows": "2",
    "tracking.map_layer": "*.up_proj",
    "data.allow_changed_source": "true",
    "data.max_bad_fraction": "0.5",
    "data.retries": "1",
    "data.prefetch_batches": "0",
    "data.cache_dir": "{here}/another_cache",
    "data.files": "['{here}/corpus.txt']",
    "sparsity.backend": "csr",
    "debug.check_invariants": "false",
}
# Their sums run in another order, or longer.
OTHER_BITS = ("train.steps", "sparsity.backend", "train.fused_backward_step")


def test_every_setting_may_change_or_may_not() -> None:
    for leaf in leaves(Config()):
        assert matches(leaf.key, FIXED_KEYS) != matches(leaf.key, CHANGEABLE_KEYS), (
            f"{leaf.key}: put it into FIXED_KEYS or CHANGEABLE_KEYS of config/continuation.py, not into both"
        )
    changeable = {leaf.key for leaf in leaves(Config())} - {leaf.key for leaf in FIXED}
    with_processes = {"train.processes", "train.parallel"}  # tests/distributed
    assert changeable == set(CHANGED) | with_processes, "give CHANGED a value to try"


@pytest.fixture(scope="module")
def half_done(
    quick_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path, bytes]:
    """The configuration and the folder of a run of 7 steps whose checkpoints after step 3 are lost, and its weights."""
    folder = tmp_path_factory.mktemp("half_done") / "run"
    config = quick_config("optimizer.grad_clip=0", "train.micro_batch_size=4", f"train.steps={STEPS}")
    train(config, folder)
    weights = weights_of(folder)
    for step in (6, STEPS):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
    return with_absolute_paths(config), folder, weights


def weights_of(folder: Path) -> bytes:
    return (folder / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors").read_bytes()


def train(config: Config, folder: Path) -> int:
    return run_training(config, folder, Console(quiet=True))


def resumed(half_done: Path, here: Path, *overrides: str) -> Path:
    """A copy of the run in ``here``, resumed with ``overrides``; returns its folder."""
    run = here / "run"
    shutil.copytree(half_done, run)
    resume(train, [str(run), *(override.format(here=here, run=run) for override in overrides)])
    return run


def another(leaf: Leaf, now: Any) -> str:
    """A value of the right type that is not ``now``."""
    if leaf.choices:
        return next(name for name in leaf.choices if name != getattr(now, "name", None))
    if isinstance(now, bool):
        return spell(not now)
    if isinstance(now, int):
        return str(now * 2)
    if isinstance(now, float):
        return str(now / 2 if now else 0.5)
    lists: dict[str, str] = {
        "optimizer.betas": "[0.5,0.5]",
        "sparsity.densities": "['*.q_proj=0.5']",
        "sparsity.include": "['*.q_proj']",
        "sparsity.exclude": "['*.q_proj']",
    }
    return lists.get(leaf.key, "1")


@pytest.mark.parametrize("half", [0, 1])
def test_what_may_not_change_is_refused(
    campaign: CampaignMaker, half_done: tuple[Config, Path, bytes], tmp_path: Path, half: int
) -> None:
    config, folder, _ = half_done
    with campaign(NAME, unit="s", part=f"fixed {half}") as tally:
        chosen: list[Any] = tally.some(list[Any](FIXED[half::2]), few=2)
        for leaf in chosen:
            now = value_at(config, leaf.key)
            override = "method=set" if leaf.key == "method" else f"{leaf.key}={another(leaf, now)}"
            started_s = time.perf_counter()
            tally.note(refusal(folder, tmp_path / leaf.key, leaf.key, now, override), time.perf_counter() - started_s)


def refusal(half_done: Path, here: Path, key: str, now: Any, override: str) -> str | None:
    before = (half_done / "config.yaml").read_text()
    try:
        resumed(half_done, here, override)
    except SmetError as error:
        told = str(error)
        at_odds = key in told and "was trained with" not in told  # with another setting, before the run is looked at
        both = f"{key}={spell(now)}, now {key}=" in told and "set it back" in told
        untouched = (here / "run" / "config.yaml").read_text() == before
        untouched = untouched and not (here / "run" / "resumes.jsonl").exists()
        return None if error.exit_status == 2 and (both or at_odds) and untouched else f"{override}: {told}"
    return f"{override} was accepted"


@pytest.mark.parametrize("part", range(3))
def test_what_may_change_is_trained_and_written_down(
    campaign: CampaignMaker,
    half_done: tuple[Config, Path, bytes],
    corpus: Path,
    tmp_path: Path,
    part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)  # takes seconds
    config, folder, weights = half_done
    with campaign(NAME, unit="s", part=f"changeable {part}") as tally:
        for key in map(str, tally.some(list[Any](CHANGED)[part::3], few=1)):
            here = tmp_path / key
            here.mkdir()
            shutil.copy(corpus, here / "corpus.txt")
            started_s = time.perf_counter()
            run = resumed(folder, here, f"{key}={CHANGED[key]}")
            same = key in OTHER_BITS or weights == weights_of(run)
            wrong = None if same else f"{key} changed what the run computes"
            wrong = wrong or other_steps(run, folder, 8 if key == "train.steps" else STEPS, same=key not in OTHER_BITS)
            tally.note(wrong or unrecorded(run, key, value_at(config, key)), time.perf_counter() - started_s)


def other_steps(run: Path, whole: Path, steps: int, *, same: bool) -> str | None:
    """What is wrong with the steps that a resumed run tells of: each of them once, with the losses of the whole run."""
    told, before = ([event for event in trace(folder) if event["event"] == "train"] for folder in (run, whole))
    if [event["step"] for event in told] != list(range(1, steps + 1)):
        return f"steps {[event['step'] for event in told]}"
    topology = [event["step"] for event in trace(run) if event["event"] == "topology"]
    if topology != [2, 4, 6]:
        return f"topology updates after {topology}"
    return "other losses" if same and told != before else None


def unrecorded(run: Path, key: str, before: Any) -> str | None:
    lines = [json.loads(line) for line in (run / "resumes.jsonl").read_text().splitlines()]
    before = before.name if isinstance(before, Enum) else before
    now: Any = yaml.safe_load((run / "config.yaml").read_text())
    for name in key.split("."):
        now = now[name]
    if len(lines) != 1 or lines[0]["changed"] != {key: [before, now]} or now == before:
        return f"{key}: {lines}, where it was {before} and is {now}"
    facts = (lines[0]["step"], lines[0]["from"])
    return None if facts == (3, "checkpoints/step_00000003") else f"{key}: {facts}"


def test_other_data_under_another_name_are_refused_with_both_names(
    half_done: tuple[Config, Path, bytes], tmp_path: Path, corpus: Path
) -> None:
    _, folder, _ = half_done
    (tmp_path / "corpus.txt").write_text(corpus.read_text() + "\nand one line more")
    with pytest.raises(SmetError) as told:
        resumed(folder, tmp_path, "data.files=['{here}/corpus.txt']")
    assert f"data.files=[{tmp_path}/corpus.txt] instead of data.files=[{corpus}]" in str(told.value)
    assert not (tmp_path / "run" / "resumes.jsonl").exists()


def test_the_same_settings_add_a_line_without_changes(half_done: tuple[Config, Path, bytes], tmp_path: Path) -> None:
    _, folder, weights = half_done
    run = resumed(folder, tmp_path)
    assert json.loads((run / "resumes.jsonl").read_text())["changed"] == {}
    assert weights == weights_of(run)


def test_a_command_that_went_back_may_be_typed_again_when_that_checkpoint_has_gone(
    half_done: tuple[Config, Path, bytes], tmp_path: Path
) -> None:
    _, folder, _ = half_done
    back = ("checkpoint.resume={run}/checkpoints/step_00000003", "checkpoint.keep=1")
    run = resumed(folder, tmp_path, *back)
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == [f"step_{STEPS:08d}"]
    words = [str(run), *(override.format(run=run) for override in back)]
    resume(train, [*words, f"train.steps={STEPS + 1}"])
    assert (run / "checkpoints" / f"step_{STEPS + 1:08d}").is_dir()
    with pytest.raises(SmetError, match=r"checkpoint.resume=.*step_00000004 does not exist; write auto, never"):
        resume(train, [*words, f"checkpoint.resume={run}/checkpoints/step_00000004"])


def test_a_run_goes_on_from_any_working_directory(
    quick_config: Callable[..., Config], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with relative paths in one folder, resumed by a relative path from another one."""
    shutil.copy(corpus, tmp_path / "corpus.txt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(quick_config("data.files=[corp*.txt]", "data.cache_dir=cache", "train.steps=3"), Path("run"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(train, ["../run", "train.steps=4"])
    (line,) = (tmp_path / "run" / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["changed"] == {"train.steps": [3, 4]}
    assert os.listdir(tmp_path / "elsewhere") == []
