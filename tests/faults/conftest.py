"""Campaigns of faults: many seeded trials of one kind, counted as tried, passed and worst case.

``make test`` tries a few of each, ``make faults`` (``--faults=all``) as many as the figures in the README say. Draws of
trial n are a function of the campaign's name and of n, so that a failure named here happens again.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

Item = TypeVar("Item")

_ROW = "fault campaign"
_SHOWN = 5  # failures that are spelled out


@dataclass
class Campaign:
    """One kind of fault.

    Attributes:
        name: what is tried, a line of the table; campaigns of one name are added up.
        every: whether all trials are made, or a few.
        worst: the largest cost that a trial was noted with, in ``unit``.
    """

    name: str
    every: bool
    unit: str = ""
    part: str = ""
    tried: int = 0
    worst: float | None = None
    failures: list[str] = field(default_factory=list)

    def draws(self, few: int, every: int) -> Iterator[random.Random]:
        """A generator of numbers for each trial: ``few`` in the short form, ``every`` in the long one."""
        for number in range(every if self.every else few):
            yield random.Random(f"{self.name} {self.part} {number}")

    def some(self, items: list[Item], few: int) -> list[Item]:
        """All ``items`` in the long form, ``few`` spread over them in the short one."""
        return items if self.every or len(items) <= few else [items[i * len(items) // few] for i in range(few)]

    def note(self, failure: str | None, cost: float | None = None) -> None:
        """Count a trial. ``failure`` says what went wrong, None that nothing did."""
        self.tried += 1
        if failure is not None:
            self.failures.append(f"trial {self.tried}: {failure}")
        if cost is not None:
            self.worst = cost if self.worst is None else max(self.worst, cost)

    def row(self) -> dict[str, object]:
        """A line of the table."""
        passed = self.tried - len(self.failures)
        return {"name": self.name, "tried": self.tried, "passed": passed, "worst": self.worst, "unit": self.unit}

    def judge(self) -> None:
        """Fail the test unless every trial has passed."""
        if not self.tried:
            pytest.fail(f"{self.name}: nothing was tried")
        if self.failures:
            told = "\n".join(self.failures[:_SHOWN])
            pytest.fail(f"{self.name}: {len(self.failures)} of {self.tried} failed:\n{told}")


CampaignMaker = Callable[..., AbstractContextManager[Campaign]]


@pytest.fixture
def campaign(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> CampaignMaker:
    """``with campaign(name, unit=..., part=...) as tally:``; at the end every trial must have passed."""
    every = request.config.getoption("--faults") == "all"

    @contextmanager
    def run(name: str, *, unit: str = "", part: str = "") -> Iterator[Campaign]:
        tally = Campaign(name, every, unit, part)
        yield tally
        record_property(_ROW, json.dumps(tally.row()))
        tally.judge()

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of all campaigns; also as JSON where ``--faults-out`` says."""
    rows: dict[str, dict[str, object]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in report.user_properties:
                if key == _ROW and report.when == "call":
                    _add(rows, json.loads(value))
    if not rows:
        return
    terminalreporter.section("faults")
    width = max(map(len, rows))
    terminalreporter.line(f"{'':{width}}  {'tried':>6}  {'passed':>6}  worst case")
    for name, row in rows.items():
        worst = "" if row["worst"] is None else f"{row['worst']:.4g} {row['unit']}"
        terminalreporter.line(f"{name:{width}}  {row['tried']:>6}  {row['passed']:>6}  {worst}")
    out = config.getoption("--faults-out")
    if out is not None:
        write_table(Path(out), list(rows.values()))


def write_table(out: Path, rows: list[dict[str, object]]) -> None:
    """The table as JSON, with what it was measured on."""
    from smet_train.bench.result import measured_on

    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": "make faults", **measured_on(), "campaigns": rows}
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _add(rows: dict[str, dict[str, object]], row: dict[str, object]) -> None:
    """Put ``row`` beside those of the same name."""
    name = str(row["name"])
    before = rows.get(name)
    if before is not None:
        for key in ("tried", "passed"):
            row[key] = int(str(before[key])) + int(str(row[key]))
        costs = [float(str(cost)) for cost in (before["worst"], row["worst"]) if cost is not None]
        row["worst"] = max(costs, default=None)
    rows[name] = row
