"""The choice of a backend: the fastest that can, once, with its reason."""

import json
from pathlib import Path

import pytest
import torch

from smet_train.errors import BackendError
from smet_train.sparse import Layout
from smet_train.sparse.backends import BACKENDS, auto
from smet_train.sparse.backends.auto import choose_backend

CPU = torch.device("cpu")
LAYOUT = Layout(24, 20, 48)


@pytest.fixture(autouse=True)
def _a_process_of_its_own() -> None:
    choose_backend.cache_clear()


def test_the_fastest_of_those_that_can_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_time", lambda runs: {name: {"densify": 5.0, "csr": 2.0}[name] for name in runs})
    choice = choose_backend(LAYOUT, torch.float32, CPU, 64, None)
    assert (choice.backend, choice.ms) == ("csr", {"densify": 5.0, "csr": 2.0})
    assert choice.text.startswith("csr 2 ms, densify 5 ms; not block: it computes blocks, not single values")


def test_candidates_are_really_timed() -> None:
    choice = choose_backend(Layout(24, 20, 6, 8), torch.bfloat16, torch.device("meta"), 10_000, None)
    assert set(choice.ms) == {"densify", "block"}
    assert all(0 < ms < 1e4 for ms in choice.ms.values())
    assert choice.ms[choice.backend] == min(choice.ms.values())


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "new" / "backends.json"
    first = choose_backend(LAYOUT, torch.float32, CPU, 64, file)
    timed: list[str] = []

    def note(runs: dict[str, object]) -> dict[str, float]:
        timed.extend(runs)
        return {"densify": 1.0, "csr": 2.0}

    monkeypatch.setattr(auto, "_time", note)
    assert choose_backend(LAYOUT, torch.float32, CPU, 64, None) != first  # times anew
    assert timed
    timed.clear()
    assert choose_backend(LAYOUT, torch.float32, CPU, 64, None).ms == {"densify": 1.0, "csr": 2.0}
    assert not timed
    choose_backend.cache_clear()
    assert choose_backend(LAYOUT, torch.float32, CPU, 64, file) == first
    assert not timed
    for other in ((LAYOUT, torch.float64, 64), (LAYOUT, torch.float32, 65), (Layout(24, 20, 49), torch.float32, 64)):
        timed.clear()
        choose_backend(other[0], other[1], CPU, other[2], file)
        assert timed
    [key] = [key for key in json.loads(file.read_text()) if "float32 64 tokens" in key and "active 48" in key]
    assert f"torch {torch.__version__.partition('+')[0]}" in key


def test_a_cache_that_cannot_be_used_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_time", lambda runs: dict.fromkeys(runs, 1.0))
    broken = tmp_path / "backends.json"
    broken.write_text("[")
    assert choose_backend(LAYOUT, torch.float32, CPU, 64, broken).backend == "densify"
    assert json.loads(broken.read_text())
    (tmp_path / "file").write_text("")
    assert choose_backend(LAYOUT, torch.float32, CPU, 64, tmp_path / "file" / "backends.json").backend == "densify"
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"backend": "csr"},
        {"backend": "gone", "ms": {}, "why_not": {}},
        {"backend": ["csr"], "ms": {}, "why_not": {}},
        {"backend": "csr", "ms": 1, "why_not": {}},
        {"backend": "csr", "ms": {}, "why_not": None},
        {"backend": "csr", "ms": {}, "why_not": {}, "more": 1},
    ],
)
def test_an_entry_that_is_not_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: object) -> None:
    monkeypatch.setattr(auto, "_time", lambda runs: dict.fromkeys(runs, 1.0))
    file = tmp_path / "backends.json"
    first = choose_backend(LAYOUT, torch.float32, CPU, 64, file)
    [key] = json.loads(file.read_text())
    file.write_text(json.dumps({key: entry}))
    choose_backend.cache_clear()
    assert choose_backend(LAYOUT, torch.float32, CPU, 64, file) == first
    assert json.loads(file.read_text())[key]["ms"] == first.ms


def test_a_choice_holds_for_processors_with_the_same_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the nodes of a cluster, which share a home."""
    file, timed = tmp_path / "backends.json", 0

    def note(runs: dict[str, object]) -> dict[str, float]:
        nonlocal timed
        timed += 1
        return dict.fromkeys(runs, 1.0)

    monkeypatch.setattr(auto, "_time", note)
    for instructions in ("AVX2", "AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=instructions: found)
        choose_backend.cache_clear()
        choose_backend(LAYOUT, torch.float32, CPU, 64, file)
    assert timed == 2


def test_nothing_that_can_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in auto.CANDIDATES["cpu"]:
        monkeypatch.setattr(BACKENDS[name], "unsupported", lambda *_: "it is Sunday")
    with pytest.raises(BackendError, match="nothing computes a 24x20 layer: .*it is Sunday"):
        choose_backend(LAYOUT, torch.float32, CPU, 64, None)
