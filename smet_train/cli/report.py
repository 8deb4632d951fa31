"""The console script ``smet-report``: charts and tables of runs, as one page and as pictures."""

import argparse
from pathlib import Path

from smet_train.cli.flags import Flags, run_command
from smet_train.config.identity import short_hash
from smet_train.report.report import IMAGES_NAME, build_report, write_report
from smet_train.report.runs import Found, ReportError, find, newest_run

RUNS_FOLDER = Path("outputs")

EXAMPLES = """\
examples:
  smet-report outputs/demo-1a2b3c4d                      one run, finished or still training
  smet-report outputs/demo-1a2b3c4d outputs/demo-5e6f7a8b --out compared
  smet-report multirun/demo-9a8b7c6d                     all runs of a sweep, and its charts by density
  smet-report --newest                                   the run under outputs/ that was last started

RUN is a run folder, or a sweep's. One run's report is written to RUN/report.html and RUN/report/*.png; that of several
to outputs/report-<name>/. The page needs no network."""


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C."""
    run_command(_flags(), _run)


def _flags() -> Flags:
    flags = Flags(
        "smet-report",
        "Charts and tables of runs: one page that opens without a network, and a PNG of each.",
        EXAMPLES,
        "Report fewer runs at once, or write --no-png",
    )
    flags.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run folder, or a sweep's")
    flags.add_argument("--newest", action="store_true", help="the run under outputs/ that was last started")
    flags.add_argument("--out", type=Path, metavar="DIR", help="where report.html is written")
    flags.add_argument("--no-png", action="store_true", help="the page alone")
    return flags


def _run(given: argparse.Namespace) -> None:
    if given.newest == bool(given.runs):
        raise ReportError("give the folders of runs, or --newest alone; smet-report --help shows examples")
    found = find([newest_run(RUNS_FOLDER)] if given.newest else given.runs)
    report = build_report(found)
    page, n_images = write_report(report, given.out or _default_folder(found), images=not given.no_png)
    for chart in report.left_out:
        print(f"left out    {chart.title}: {chart.why}")
    for note in report.notes:
        print(f"note        {note}")
    if n_images:
        print(f"pictures    {n_images} in {page.parent / IMAGES_NAME}")
    print(f"report      {page} ({len(report.charts)} charts, {page.stat().st_size / 1e6:.1f} MB)")


def _default_folder(found: Found) -> Path:
    """The run folder of one run; of several a folder that the same command finds again."""
    if len(found.runs) == 1:
        return found.runs[0].folder
    only = found.sweeps[0] if len(found.sweeps) == 1 and found.runs == found.sweeps[0].runs else None
    return RUNS_FOLDER / f"report-{only.folder.name if only else short_hash([str(run.folder) for run in found.runs])}"


if __name__ == "__main__":
    main()
