"""SIGKILL at any moment: the same command typed again ends with the bits of a run that was never killed."""

import gzip
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smet_train.config.schema import Config
from smet_train.train import loop
from smet_train.train.run import Run
from tests.conftest import make_documents
from tests.faults.trials import KillInSave, difference, end, kill_within, outcome, output, run, start, trace, warm_up

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
STEPS = 13  # the last save is not one of those every 3 steps

DENSITIES = ("1", "0.5", "0.1", "0.05")
LAYOUTS = {
    "values": ["sparsity.block_size=1"],
    "blocks": ["sparsity.block_size=8"],
}
PRECISIONS = ("fp32", "bf16", "bf16_mixed")
SOURCES = ("text", "jsonl.gz", "parquet", "python_source")
CASES = list(itertools.product(DENSITIES, LAYOUTS, PRECISIONS))


def write_source(kind: str, folder: Path) -> list[str]:
    """Overrides that read 3 shards of ``kind`` in ``folder``."""
    if kind == "python_source":
        return ["data=python_source", "data.files=[]", "data.text_unit=paragraph"]
    for number in range(3):
        documents = make_documents(60, seed=number)
        if kind == "text":
            (folder / f"{number}.txt").write_text("\n".join(documents), encoding="utf-8")
        elif kind == "jsonl.gz":
            with gzip.open(folder / f"{number}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
        else:
            pq.write_table(pa.table({"text": documents}), folder / f"{number}.parquet")
    name = kind.removesuffix(".gz")
    unit = ["data.text_unit=line"] if kind == "text" else ["data.text_unit=paragraph"]
    return [f"data={name}", f"data.files=['{folder}/*.{kind.replace('text', 'txt')}']", *unit]


# A run of 13 steps, with a save every 3 steps, a topology update every 4.
SETTINGS = (
    "model.layers=1",
    "model.intermediate_size=64",
    f"train.steps={STEPS}",
    "train.eval_interval=5",
    "checkpoint.interval=3",
    "checkpoint.keep=2",
    "topology.interval=4",
    "tracking.probe_windows=1",
)


@pytest.fixture(scope="module")
def configure(quick_config: QuickConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """Such a run over three shards of a source, which are written once."""
    warm_up()
    written: dict[str, list[str]] = {}

    def make(source: str, *overrides: str) -> Config:
        if source not in written:
            written[source] = write_source(source, tmp_path_factory.mktemp(source))
        return quick_config(*SETTINGS, *written[source], *overrides)

    return make


@pytest.fixture(scope="module")
def whole_text(configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over text files that nothing has happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(configure("text"), folder) == 0, output(folder)
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        numbers = range(0, len(CASES), 1 if metafunc.config.getoption("--faults") == "all" else 11)
        metafunc.parametrize("number", numbers, ids=[" ".join(CASES[number]) for number in numbers])


def test_a_killed_run_ends_as_one_that_was_not(
    configure: Callable[..., Config], tmp_path: Path, campaign: Any, number: int
) -> None:
    density, layout, precision = CASES[number]
    config = configure(
        SOURCES[number % len(SOURCES)],
        f"sparsity.density={density}",
        f"train.precision={precision}",
        f"train.micro_batch_size={(4, 2, 1)[number % 3]}",
        f"method={('smet', 'set', 'smet_rigl', 'static')[number // 2 % 4]}",
        f"checkpoint.asynchronous={number % 2 == 1}",
        *LAYOUTS[layout],
    )
    whole = tmp_path / "whole"
    started_s = time.monotonic()
    assert run(config, whole) == 0, output(whole)
    longest_s = time.monotonic() - started_s

    with campaign("SIGKILL at a random moment, resumed: exact", part=str(number)) as tally:
        for draw in tally.draws(few=1, every=30):
            folder = tmp_path / f"killed {tally.tried}"
            kill_within(start(config, folder), longest_s, draw)
            tally.note(resumed(config, folder, whole))
    with campaign("SIGKILL inside a save or a rotation, resumed: exact", part=str(number)) as tally:
        for draw in tally.draws(few=1, every=13):
            folder = tmp_path / f"killed in a save {tally.tried}"
            died = run(config, folder, KillInSave(draw.randint(1, 6), draw.random()))
            tally.note(resumed(config, folder, whole) if died in (0, -signal.SIGKILL) else output(folder))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_may_end_before_the_kill_that_its_last_save_sets_off(
    configure: Callable[..., Config], tmp_path: Path, asynchronous: bool
) -> None:
    """Where saves are fast; the trials above then have a finished run to go on with."""
    config, folder = configure("text", f"checkpoint.asynchronous={asynchronous}"), tmp_path / "run"
    assert run(config, folder, KillInSave(6, 1e4)) == 0, output(folder)
    assert trace(folder)[-1]["reason"] == "finished"


@pytest.mark.parametrize("place", ["report_checkpoint", "evaluate", "report_memory", "report_end"])
def test_a_run_killed_between_its_last_save_and_its_end_has_every_event(
    configure: Callable[..., Config], whole_text: Path, tmp_path: Path, place: str
) -> None:
    config, killed = configure("text"), tmp_path / "killed"
    assert run(config, killed, KillAtTheEnd(place)) == -signal.SIGKILL, output(killed)
    assert resumed(config, killed, whole_text) is None


class KillAtTheEnd:
    """SIGKILL where ``place``, a function of the training loop, is called after the last step's save."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self) -> None:
        real = vars(loop)[self.place]

        def kill(run: Run, *arguments: Any) -> Any:
            if run.saver.has(STEPS):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(run, *arguments)

        vars(loop)[self.place] = kill


def resumed(config: Config, folder: Path, whole: Path) -> str | None:
    """Type the same command again; what is wrong with its result, if anything. A folder that is wrong is kept."""
    status = run(config, folder)
    found = f"exit status {status}: {output(folder)}" if status != 0 else difference(folder, whole, STEPS)
    if found is None:
        shutil.rmtree(folder)
    return found


def test_a_checkpoint_of_every_step_leads_to_the_same_end(
    configure: Callable[..., Config], tmp_path: Path, campaign: Any
) -> None:
    whole = tmp_path / "whole"
    with campaign("a checkpoint of every one of 60 steps, resumed: exact") as tally:
        steps = 60 if tally.every else STEPS
        config = configure("text", f"train.steps={steps}", "checkpoint.interval=1", "checkpoint.keep=100")
        assert run(config, whole) == 0, output(whole)
        for step in tally.some(list(range(1, steps + 1)), few=3):
            folder = tmp_path / f"from {step}"
            shutil.copytree(whole, folder)
            for later in range(step + 1, steps + 1):
                shutil.rmtree(folder / "checkpoints" / f"step_{later:08d}")
            failed = run(config, folder) != 0
            tally.note(output(folder) if failed else difference(folder, whole, steps))
            shutil.rmtree(folder)


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    configure: Callable[..., Config], tmp_path: Path, campaign: Any
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with campaign("one run killed 25 times in a row: exact") as tally:
        steps = 60 if tally.every else 2 * STEPS
        config = configure("jsonl.gz", f"train.steps={steps}", "checkpoint.interval=2")
        started_s = time.monotonic()
        assert run(config, whole) == 0, output(whole)
        longest_s = time.monotonic() - started_s
        kills = list(tally.draws(few=2, every=25))
        for draw in kills:
            kill_within(start(config, broken), longest_s / 3, draw)
        failed = run(config, broken) != 0
        tally.note(output(broken) if failed else difference(broken, whole, steps))


def test_a_finished_run_extended_is_a_longer_run(
    configure: Callable[..., Config], tmp_path: Path, campaign: Any
) -> None:
    constant = ["optimizer.schedule=constant", "optimizer.warmup_fraction=0", "topology.drop_schedule=constant"]
    short, long = (
        configure("text", "train.eval_interval=4", *constant, f"train.steps={steps}") for steps in (STEPS, 2 * STEPS)
    )
    with campaign("a finished run extended to twice its length: exact") as tally:
        assert run(short, tmp_path / "extended") == 0
        assert run(long, tmp_path / "extended") == 0
        assert run(long, tmp_path / "straight") == 0
        extended, straight = (outcome(tmp_path / name, 2 * STEPS) for name in ("extended", "straight"))
        extended["event 1"]["steps"] = 2 * STEPS  # it says how long the run was to be when it began
        names = [name for name in {*extended, *straight} if extended.get(name) != straight.get(name)]
        tally.note(f"other {names}" if names else None)


class SaveInPlace:
    """The usual way to save, for comparison: ``torch.save`` over the file of the save before, again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        state = {str(number): torch.randn(64, 1024) for number in range(20)}
        while True:
            torch.save(state, self.path)
            time.sleep(0.02)


def test_control_saving_in_place_loses_runs(configure: Callable[..., Config], tmp_path: Path, campaign: Any) -> None:
    """Without a temporary name and a rename, a kill leaves a file that can't be read: the trials above can fail."""
    config = configure("text")
    with campaign("control: torch.save in place, killed: unreadable", unit="% unreadable") as tally:
        broken = 0
        for draw in tally.draws(few=60, every=60):
            if broken and not tally.every:
                break  # one is enough in the short form
            path = tmp_path / "state.pt"
            process = start(config, tmp_path / "never", SaveInPlace(path))
            while not path.exists():
                time.sleep(0.005)
            time.sleep(0.1 + draw.random() * 0.1)
            os.kill(process.pid or 0, signal.SIGKILL)
            end(process)
            try:
                torch.load(path)
            except (RuntimeError, EOFError, OSError):
                broken += 1
            path.unlink()
            tally.note(None)
        tally.worst = 100 * broken / tally.tried
    assert broken, "no kill met a save: the control shows nothing"
