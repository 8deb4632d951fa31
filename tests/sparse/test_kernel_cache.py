"""Whatever happened to the files of compiled kernels, a process computes what a fresh compilation would."""

import errno
import importlib.util
import itertools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest

from smet_train.optim import kernels as optimizer_kernels
from smet_train.sparse import kernel_cache
from smet_train.sparse.backends import csr_kernels
from smet_train.sparse.kernel_cache import KernelCache

SOURCE = """
from smet_train.sparse.kernel_cache import kernel

FACTOR = 2

@kernel(error_model="numpy")
def scale(values, out):
    for place in range(len(values)):
        out[place] = FACTOR * values[place]
"""

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    kernel_cache._tell.cache_clear()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """The module as a process sees it that has just begun."""
    # Python takes its own compiled file for that of another source of the same length, written in the same second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def read(source: str = SOURCE) -> ModuleType:
        path = tmp_path / "scaling.py"
        if not path.exists() or path.read_text() != source:  # older versions of numba go by its time
            path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"scaling{next(_numbers)}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return read


def scaled(module: ModuleType, dtype: str = "f8") -> tuple[list[float], bool]:
    """Three numbers scaled, and whether the code had to be compiled."""
    out: Any = np.zeros(3, dtype)
    module.scale(np.array([1, 2, 3], dtype), out)
    return out.tolist(), not module.scale.stats.cache_hits


def files(folder: Path) -> list[Path]:
    return sorted((folder / "__pycache__").glob("scaling.scale*.kernel"))


def test_a_second_process_does_not_compile(start: Callable[..., ModuleType], tmp_path: Path) -> None:
    assert scaled(start()) == ([2, 4, 6], True)
    assert len(files(tmp_path)) == 1
    assert scaled(start()) == ([2, 4, 6], False)
    assert scaled(start(), "f4") == ([2, 4, 6], True)
    assert len(files(tmp_path)) == 2
    assert scaled(start(), "f4") == ([2, 4, 6], False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:0],
        lambda content: content[:31],
        lambda content: content[:32],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        lambda content: content + b"\0",
        *(lambda content, at=at: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (0, 32, -9)),
    ],
)
def test_a_damaged_file_is_compiled_again(
    start: Callable[..., ModuleType], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    scaled(start())
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert scaled(start()) == ([2, 4, 6], True)
    assert files(tmp_path) == [path]
    assert scaled(start()) == ([2, 4, 6], False)


def test_code_of_other_types_is_not_taken(start: Callable[..., ModuleType], tmp_path: Path) -> None:
    """As numba's index can name it, and then runs it on what it was not made for."""
    scaled(start(), "i8")
    (whole_numbers,) = files(tmp_path)
    scaled(start(), "f8")
    (other,) = set(files(tmp_path)) - {whole_numbers}
    other.write_bytes(whole_numbers.read_bytes())
    assert scaled(start(), "f8") == ([2, 4, 6], True)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [("FACTOR = 2", "FACTOR = 3", [3, 6, 9]), ("FACTOR * values", "FACTOR - values", [1, 0, -1])],
)
def test_a_changed_source_is_compiled(
    start: Callable[..., ModuleType], old: str, new: str, expected: list[int]
) -> None:
    scaled(start())
    assert scaled(start(SOURCE.replace(old, new))) == (expected, True)


def test_a_constant_from_elsewhere_and_an_option_are_part_of_the_code(
    start: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the source that numba looks at."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the module of constants is always read anew
    source = SOURCE.replace("FACTOR = 2", "from scaling_constants import FACTOR, MATH")
    source = source.replace('error_model="numpy"', "fastmath=MATH")
    for number, (factor, math) in enumerate([(2, {"nsz"}), (3, {"nsz"}), (3, {"arcp", "nsz"})], 1):
        (tmp_path / "scaling_constants.py").write_text(f"FACTOR, MATH = {factor}, {math}")
        sys.modules.pop("scaling_constants", None)
        importlib.invalidate_caches()
        assert scaled(start(source)) == ([factor, 2 * factor, 3 * factor], True)
        assert len(files(tmp_path)) == number
        assert scaled(start(source))[1] is False


def test_a_full_disk_costs_a_warning(
    start: Callable[..., ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "replace", full)
        module = start()
        assert scaled(module) == ([2, 4, 6], True)
        assert scaled(module, "f4")[0] == [2, 4, 6]
    (told,) = [record.getMessage() for record in caplog.records if record.name == kernel_cache.log.name]
    assert told.startswith("compiled kernels are not kept ([Errno 28] No space left on device): every start compiles")
    assert not list((tmp_path / "__pycache__").glob("*.kernel*"))
    assert scaled(start()) == ([2, 4, 6], True)


def test_no_place_costs_a_warning(
    start: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container whose user has no home and may not write beside the source."""
    monkeypatch.setattr(KernelCache._impl_class, "_locator_classes", [])
    with caplog.at_level(logging.WARNING):
        module = start()
    assert "no locator available" in caplog.text
    assert scaled(module) == ([2, 4, 6], True)


def test_recompiling_removes_what_was_kept(start: Callable[..., ModuleType], tmp_path: Path) -> None:
    module = start()
    scaled(module)
    (path,) = files(tmp_path)
    of_an_older_source = path.with_name(f"{path.name[:-16]}.kernel")
    path.rename(of_an_older_source)
    module.scale.recompile()
    assert files(tmp_path) == [path]
    assert scaled(module)[0] == [2, 4, 6]


def test_every_kernel_is_kept_this_way() -> None:
    compiled = [
        value
        for module in (csr_kernels, optimizer_kernels)
        for value in vars(module).values()
        if isinstance(value, numba.core.dispatcher.Dispatcher)
    ]
    assert len(compiled) > 20
    assert all(isinstance(vars(one)["_cache"], KernelCache) for one in compiled)
