import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.job import run_training

CHURN = """
import json, sys
from pathlib import Path
import torch
from smet_train.train.heap import release_freed_memory
if sys.argv[1] == "release":
    release_freed_memory()
def held():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
torch.ones(2**21)  # 8 MiB: once freed, glibc keeps blocks of this size on its heap
before = held()
kept, tensors = [], []
for _ in range(50):
    tensors.append(torch.ones(2**19))  # 2 MiB
    kept.append(torch.ones(1000))  # between two of them, so that what is freed can't shrink the heap
del tensors
print(json.dumps(held() - before))
"""


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and glibc")
def test_freed_tensors_are_given_back() -> None:
    def held(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True)
        return int(json.loads(done.stdout))

    if platform.libc_ver()[0] == "glibc":
        assert held("keep") > 50 * 2**20
    assert held("release") < 10 * 2**20


def test_a_library_that_can_not_is_said(
    quick_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    with pytest.raises(ConfigError, match="no such setting"):
        run_training(quick_config("train.release_freed_memory=true"), tmp_path)
