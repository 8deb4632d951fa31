"""Every architecture of the table in docs/architectures.md does what its row says."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.architectures import BEGIN, CONFIGS, END, Failed, attempt, documented, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
# One of each kind that is quick: plain, Conv1D, eager attention, experts, one that looks ahead.
FEW = ("mistral", "gpt2", "bloom", "mixtral", "bert")


def test_the_table_is_that_of_the_configurations() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = documented(page)
    assert list(rows) == list(CONFIGS)
    assert len(CONFIGS) == 47
    assert table(rows.__getitem__).strip() == page.partition(BEGIN)[2].partition(END)[0].strip()
    assert all(row.count(" | ") >= 3 for row in rows.values())


@pytest.mark.parametrize("part", range(5))
def test_each_trains_resumes_evaluates_and_exports_or_is_refused(
    corpus: Path, tmp_path: Path, campaign: Any, part: int
) -> None:
    rows = documented(PAGE.read_text(encoding="utf-8"))
    with campaign("architectures: trained, resumed, exported alike, or refused", part=str(part)) as tally:
        names = [name for name in CONFIGS if name not in FEW][part::5] if tally.every else []
        for name in (FEW[part], *names):
            try:
                row = str(attempt(name, corpus, tmp_path / name))
            except Failed as error:
                tally.note(f"{name}: {error}")
                continue
            tally.note(None if row == rows[name] else f"{name}: {row}, documented as {rows[name]}")
