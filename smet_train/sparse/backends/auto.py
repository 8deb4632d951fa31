"""The fastest backend for a layer, found by timing the candidates once and remembered."""

import functools
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from smet_train.errors import BackendError
from smet_train.replacing import replacing
from smet_train.sparse.backends import BACKENDS
from smet_train.sparse.index import pack
from smet_train.sparse.layout import Layout
from smet_train.sparse.sampling import first_index

log = logging.getLogger(__name__)

CANDIDATES = {"cpu": ("densify", "csr", "block"), "cuda": ("densify", "triton")}
_MOST_TOKENS = 2048  # more tokens at once take longer in proportion
_ROUNDS = 3
_LIBRARIES = ("torch", "numba", "smet-train")


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend of one kind of layer. ``ms``: forward and backward of each candidate; ``why_not``: of the others."""

    backend: str
    ms: dict[str, float]
    why_not: dict[str, str]

    @property
    def text(self) -> str:
        """The reason in words."""
        timed = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(self.ms.items(), key=lambda item: item[1]))
        return "; ".join([timed, *(f"not {name}: {reason}" for name, reason in self.why_not.items())])


@functools.cache  # whatever becomes of the file, a process stays with its choice
def choose_backend(
    layout: Layout, dtype: torch.dtype, device: torch.device, tokens: int, cache_file: Path | None
) -> Choice:
    """The candidate with the least time of forward and backward over ``tokens`` tokens.

    Args:
        dtype: of the products.
        device: where the layer will be computed; on the meta device the CPU is timed.
        cache_file: JSON of what was found before, by shape, count, dtype, tokens, device, vector instructions, threads
            and library versions; None times anew. It is written whole and renamed, so that several processes may share
            it.
    """
    device = torch.device("cpu") if device.type == "meta" else device
    tokens = min(tokens, _MOST_TOKENS)
    key = _key(layout, dtype, device, tokens)
    known = _read(cache_file)
    if key in known:
        return Choice(**known[key])
    why_not: dict[str, str] = {}
    runs: dict[str, Callable[[], None]] = {}
    for name in CANDIDATES.get(device.type, ("densify",)):
        reason = BACKENDS[name].unsupported(layout, dtype, device)
        if reason is None:
            runs[name] = _trial(name, layout, dtype, device, tokens)
        else:
            why_not[name] = reason
    if not runs:
        raise BackendError(f"sparsity.backend=auto: nothing computes a {layout.shape_text} layer: {why_not}")
    ms = _time(runs)
    choice = Choice(min(ms, key=lambda name: ms[name]), ms, why_not)
    log.info("backend %s for %s at density %.4g: %s", choice.backend, layout.shape_text, layout.density, choice.text)
    if cache_file is not None:
        entry = {"backend": choice.backend, "ms": ms, "why_not": why_not}
        _write(cache_file, {**_read(cache_file), key: entry})
    return choice


def _trial(name: str, layout: Layout, dtype: torch.dtype, device: torch.device, tokens: int) -> Callable[[], None]:
    """Forward and backward of a layer with random sites and values."""
    backend = BACKENDS[name]
    plan = backend.plan(pack(first_index(layout, 1, device), layout), layout)
    x = torch.randn(tokens, layout.in_features, device=device, dtype=dtype, requires_grad=True)
    values = torch.randn(layout.values_shape, device=device, dtype=dtype, requires_grad=True)
    grad_y = torch.randn(tokens, layout.out_features, device=device, dtype=dtype)

    def run() -> None:
        torch.autograd.grad(backend.matmul(x, values, plan), (x, values), grad_y)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _time(runs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Least milliseconds of each, which take turns; the first turn warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(_ROUNDS + 1):
        for name, run in runs.items():
            started_s = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], (time.perf_counter() - started_s) * 1e3)
    return best


def _key(layout: Layout, dtype: torch.dtype, device: torch.device, tokens: int) -> str:
    # Machines that share a home differ in their vector instructions.
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    versions = " ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    shape = f"{layout.shape_text} active {layout.n_active} block {layout.block}"
    return f"{shape} {dtype} {tokens} tokens, {device.type} {machine} {threads}, {versions}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    """What is known; a file that can't be read is as good as none, and so is an entry that is not one."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return {key: entry for key, entry in known.items() if _is_entry(entry)} if isinstance(known, dict) else {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or {*entry} != {"backend", "ms", "why_not"}:
        return False
    backend, ms, why_not = entry["backend"], entry["ms"], entry["why_not"]
    return isinstance(backend, str) and backend in BACKENDS and isinstance(ms, dict) and isinstance(why_not, dict)


def _write(path: Path, known: dict[str, dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(known, indent=1), encoding="utf-8")
    except OSError as error:
        log.warning("the choice of backends could not be kept in %s: %s", path, error)
