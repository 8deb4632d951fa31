"""The report of a set of runs: which charts and tables, in which order; and writing it."""

from collections.abc import Callable
from pathlib import Path

from smet_train import opening
from smet_train.replacing import replacing
from smet_train.report.charts import Chart, LeftOut, Report, Section, Table
from smet_train.report.curves import Runs, loss_charts, optimization_charts
from smet_train.report.labels import labels
from smet_train.report.memory import memory_chart, memory_tables
from smet_train.report.runs import Found, ReportError
from smet_train.report.spikes import spike_charts
from smet_train.report.sweeps import sweep_section
from smet_train.report.tables import spike_table, summary_table
from smet_train.report.topology import exploration_charts, map_charts
from smet_train.showing import shown

PAGE_NAME = "report.html"
IMAGES_NAME = "report"


def build_report(found: Found) -> Report:
    """Everything that ``found`` has data for; what it has none for is said in a sentence."""
    with opening.malformed("what is recorded of these runs", ReportError, "report the others"):
        return _build_report(found)


def _build_report(found: Found) -> Report:
    runs = dict(zip(map(shown, labels(found.runs)), found.runs, strict=True))
    spikes = spike_table(runs)
    sections = [
        Section("Summary", tables=(summary_table(runs),)),
        *(sweep_section(sweep, number) for number, sweep in enumerate(found.sweeps, start=1)),
        _section("Loss", loss_charts, runs),
        _section("Loss spikes after topology updates", spike_charts, runs, (spikes,) if spikes else ()),
        _section("Topology", exploration_charts, runs),
        _section("Where one layer is active", map_charts, runs),
        Section("Memory", (memory_chart(runs),), tuple(memory_tables(runs))),
        _section("Optimization and speed", optimization_charts, runs),
    ]
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    return Report(f"smet-train: {title}", tuple(sections), found.notes)


def _section(
    title: str, make: Callable[[Runs], list[Chart | LeftOut]], runs: Runs, tables: tuple[Table, ...] = ()
) -> Section:
    return Section(title, tuple(make(runs)), tables)


def write_report(report: Report, folder: Path, images: bool = True) -> tuple[Path, int]:
    """Write ``folder/report.html`` and, with ``images``, ``folder/report/<chart>.png``; returns the page and
    the number of pictures.

    PNGs of charts that an earlier report had and this one has not are removed; those of others stay.

    Raises:
        ReportError: if the folder can't be written.
    """
    from smet_train.report.page import render_page  # bokeh takes a second; a mistake is told before

    page = folder / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opening.require_own(folder / IMAGES_NAME)
        with opening.malformed("what is recorded of these runs", ReportError, "report the others"):
            with replacing(page) as part:
                part.write_text(render_page(report), encoding="utf-8")
            return page, _write_images(report, folder / IMAGES_NAME) if images else 0
    except OSError as error:
        raise ReportError(
            f"{folder} can't be written ({error.strerror}); choose another folder with --out", exit_status=1
        ) from error


def _write_images(report: Report, folder: Path) -> int:
    from smet_train.report.images import draw_images, is_own  # matplotlib takes a second too

    folder.mkdir(exist_ok=True)
    drawn = draw_images(report.charts, folder)
    for path in set(folder.glob("*.png")) - set(drawn):
        if path.is_file() and is_own(path):
            path.unlink()
    return len(drawn)
