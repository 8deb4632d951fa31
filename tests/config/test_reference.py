"""docs/configuration.md is what the settings say."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from smet_train.config.compose import compose
from smet_train.config.continuation import CHANGEABLE_KEYS, FIXED_KEYS
from smet_train.config.fields import leaves, matches
from smet_train.config.locate import group_options, groups
from smet_train.config.reference import main, reference_text
from smet_train.config.schema import Config
from tests.programs import BOTH, without

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
# Words by which the meaning of a number says what it counts or is measured in, or that it is a pure number.
UNITS = (
    "steps sequences tokens documents bytes windows hours nats times tries edge entries blocks heads width seed gib "
    "micro-batches checkpoints decay fraction probability deviation rate norm largest share added of loss ranks process"
).split()


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_text(), "type make docs"


def test_every_setting_and_every_preset_has_one_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", reference_text(), re.MULTILINE)
    keys = [leaf.key for leaf in leaves(Config())]
    assert [row for row in rows if row in set(keys)] == keys
    names = [name for group in groups() for name in group_options(group)]
    assert sorted(row for row in rows if row in set(names)) == sorted(names)


def test_the_last_column_is_what_a_resumed_run_obeys() -> None:
    for key, last in re.findall(r"^\| `([^`]+)` \|.* \| (fixed|may change) \|$", reference_text(), re.MULTILINE):
        assert matches(key, CHANGEABLE_KEYS if last == "may change" else FIXED_KEYS), key


@pytest.mark.parametrize(
    "leaf", [leaf for leaf in leaves(Config()) if leaf.range is not None], ids=lambda leaf: leaf.key
)
def test_the_meaning_of_every_number_says_its_unit(leaf: object) -> None:
    words = re.findall(r"[a-z-]+", str(getattr(leaf, "help")).lower())  # noqa: B009
    assert set(words) & set(UNITS), words


def test_what_a_preset_sets_is_what_it_composes_to() -> None:
    row = next(line for line in reference_text().splitlines() if line.startswith("| `demo` | A small LLaMA on"))
    settings = re.findall(r"`([^`]+)`", row.split(" | ")[-1])
    assert compose(settings) == compose(["+experiment=demo"])


@BOTH
def test_it_is_written_without_the_heavy_libraries(programs: ModuleType, tmp_path: Path) -> None:
    script = without("torch", "transformers", "datasets", "hydra", "omegaconf") + (
        "from smet_train.config.reference import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    file = tmp_path / "configuration.md"
    done = programs.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert file.read_text(encoding="utf-8") == reference_text()


def test_without_a_file_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "docs/configuration.md" in capsys.readouterr().err
