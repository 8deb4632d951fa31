"""A folder of an export is there whole or not at all."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smet_train.errors import ConfigError, SmetError
from smet_train.export import write
from smet_train.export.folder import new_folder
from smet_train.export.write import export


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may become larger than 50 kB: the system fails a write as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", ["hf", "sparse", "torch"])
def test_a_write_that_fails_is_one_message_and_leaves_nothing(
    format: str, run_of: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = run_of("llama_gqa")
    request.getfixturevalue("small_files")
    with pytest.raises(SmetError, match=r"new/out can't be written: .*File too large.*; make room or give") as caught:
        export(run, format, tmp_path / "new" / "out")
    assert caught.value.exit_status == 1
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    run = run_of("llama_gqa")
    monkeypatch.setattr(write, "model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(run, "torch", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("content")
        assert not list((tmp_path / "empty").iterdir())
    assert (tmp_path / "empty" / "file").read_text() == "content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


def test_what_is_put_there_meanwhile_stays(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_there(*_: object) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        return "card"

    run = run_of("llama_gqa")
    monkeypatch.setattr(write, "model_card", put_there)
    with pytest.raises(SmetError, match="not empty"):
        export(run, "torch", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for path, message in (
        (tmp_path / "full", "full is not empty, it holds thesis.tex; empty it, or give another folder with --out"),
        (tmp_path / "full" / "thesis.tex", "thesis.tex is a file; give another folder with --out"),
        (tmp_path / "full" / "thesis.tex" / "out", "thesis.tex is a file; give another folder with --out"),
    ):
        with pytest.raises(ConfigError) as caught, new_folder(path):
            pass
        assert message in str(caught.value)


def test_a_folder_that_can_not_be_looked_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(ConfigError, match=r"can't be read \(Permission denied\); give another"), new_folder(tmp_path):
        pass


@pytest.mark.parametrize("format", ["sparse", "torch"])
def test_a_dense_model_is_exported_as_hf_alone(format: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no sparse layer \(method=dense\); write --format hf"):
        export(run_of("dense"), format, tmp_path / "out")
    assert not list(tmp_path.iterdir())
