"""SIGKILL of the real command, from start-up to the last save: typed again, it ends with the bits of one left alone.

In the long form it is a new interpreter, killed in its imports too; in the short one a fork of a warm process.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import psutil
import pytest

from tests import forked
from tests.faults.conftest import CampaignMaker
from tests.faults.trials import difference, warm_up

pytestmark = pytest.mark.slow

KINDS = (
    ["checkpoint.asynchronous=true"],
    ["method=smet_rigl", "train.micro_batch_size=2"],
    ["train.precision=bf16", "sparsity.block_size=8"],
    ["train.processes=2", "train.parallel=fsdp", "train.micro_batch_size=2"],
)
COMMAND = [sys.executable, "-m", "smet_train"]


Start = Callable[..., "subprocess.Popen[bytes]"]


def type_in(start: Start, overrides: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder.parent / "console.log").open("ab") as told:
        return start(
            [*COMMAND, *overrides, f"hydra.run.dir={folder}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=told,
            stderr=told,
        )


def killed_and_typed_again(
    start: Start, overrides: list[str], folder: Path, longest_s: float, draw: Random
) -> str | None:
    """What is wrong with the second command's end; None if nothing is."""
    process = type_in(start, overrides, folder)
    try:
        process.wait(draw.random() * longest_s)
    except subprocess.TimeoutExpired:
        others = []
        with suppress(psutil.NoSuchProcess):  # it has ended just now
            others = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(others, timeout=60)  # processes of the run save first, and hold its lock meanwhile
    status = type_in(start, overrides, folder).wait()
    return f"status {status}: {(folder.parent / 'console.log').read_text()[-2000:]}" if status else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = KINDS if metafunc.config.getoption("--faults") == "all" else [KINDS[0], KINDS[3]]
    metafunc.parametrize("kind", kinds, ids=[kind[0] for kind in kinds])


def test_a_killed_command_typed_again_ends_as_one_that_was_not(
    quick: list[str], tmp_path: Path, campaign: CampaignMaker, kind: list[str]
) -> None:
    with campaign("SIGKILL of the real command, typed again: exact", part=kind[0]) as tally:
        start: Start = subprocess.Popen if tally.every else forked.Popen
        warm_up()
        steps = 40 if tally.every else 9
        overrides = [*quick, f"train.steps={steps}", "checkpoint.interval=3", *kind]
        started_s = time.monotonic()
        assert type_in(start, overrides, tmp_path / "whole").wait() == 0, (tmp_path / "console.log").read_text()
        longest_s = time.monotonic() - started_s
        for draw in tally.draws(few=1, every=5):
            folder = tmp_path / f"killed {tally.tried}"
            failure = killed_and_typed_again(start, overrides, folder, longest_s, draw)
            failure = failure or difference(folder, tmp_path / "whole", steps)
            tally.note(failure)
            if failure is None:
                shutil.rmtree(folder)
