"""A file is the old one or the new one, and nothing lies beside it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smet_train.replacing import replacing


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_after_an_error_the_old_content_is_all_there_is(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "held.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_nothing_is_left_where_the_name_is_taken_by_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"held\.json"), replacing(path) as part:
        part.write_text("new")
    assert [*tmp_path.iterdir()] == [path]


def test_a_block_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "held.json"):
        pass


def test_writers_at_once_leave_the_content_of_one(tmp_path: Path) -> None:
    path = tmp_path / "held.json"

    def write(number: int) -> None:
        with replacing(path) as part, part.open("w") as file:
            for _ in range(100):
                file.write(f"{number:04d}")
                os.sched_yield()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    content = path.read_text()
    assert content == content[:4] * 100
    assert [*tmp_path.iterdir()] == [path]
