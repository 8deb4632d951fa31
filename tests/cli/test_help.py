"""What is printed for someone who does not know what to type."""

from pathlib import Path

import pytest

from smet_train.cli import help as pages
from smet_train.config import locate
from smet_train.config.locate import group_options


def test_the_short_page_begins_with_the_demo_and_lists_every_experiment() -> None:
    lines = pages.usage_text().splitlines()
    commands = [line.split("  ")[1] for line in lines if line.startswith("  smet-")]
    assert commands[0] == "smet-train +experiment=demo"
    listed = [
        line.split()[0] for line in lines[lines.index("experiments (+experiment=NAME)") + 2 :] if line[:2] == "  "
    ]
    assert listed[0] == "demo"
    assert set(listed) == {name for name in group_options("experiment") if not name.startswith("bench_")}
    assert max(len(line) for line in lines if "tutorial.md" not in line) <= 120


def test_every_experiment_says_what_it_is() -> None:
    for group in ("experiment", "data", "method", "debug"):
        for name in group_options(group):
            assert len(locate.option_comment(group, name)) > 20, f"{group}/{name}.yaml has no comment at its head"
    assert locate.option_comment("model", "llama_9m") == ""


def test_the_documents_are_named_where_they_are_and_a_wheel_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = locate.documents_folder()
    assert folder is not None
    assert f"{folder / 'tutorial.md'}" in pages.usage_text()
    with monkeypatch.context() as wheel:
        wheel.setattr(locate, "config_folder", lambda: tmp_path / "_configs")
        assert locate.documents_folder() is None
    monkeypatch.setattr(pages, "documents_folder", lambda: None)
    assert "tutorial.md" not in pages.usage_text()
