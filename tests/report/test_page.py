"""The page and the pictures: whole, self-contained, and drawn by a real browser where there is one."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from smet_train.report.report import build_report, write_report
from smet_train.report.runs import ReportError, find

pytestmark = pytest.mark.slow

MakeRun = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What a fresh profile asks for by itself, whatever the page.
BROWSERS_OWN = re.compile(r"https?://([\w-]+\.)*(google|googleapis|gvt1|gstatic|chromium)\.(com|org)/")
LOADS = ("src", "href", "action", "data", "poster", "srcset")


class Loads(HTMLParser):
    """Collects what a browser would fetch, and the ids of the figures."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.fetched += [str(facts[name]) for name in LOADS if facts.get(name)]
        if tag == "figure":
            self.figures.append(str(facts["id"]))


def read(page: Path) -> Loads:
    loads = Loads()
    loads.feed(page.read_text(encoding="utf-8"))
    return loads


def test_the_page_has_every_chart_and_fetches_nothing(finished: Path) -> None:
    report = build_report(find([finished]))
    page, n_images = write_report(report, finished)
    loads = read(page)
    assert loads.figures == [chart.key for chart in report.charts]
    assert loads.fetched == []
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "@import" not in text.split("<script")[0]
    pictures = sorted(path.stem for path in (finished / "report").glob("*.png"))
    assert pictures == sorted(chart.key for chart in report.charts)
    assert len(pictures) == n_images


def test_pictures_of_an_earlier_report_go_and_other_files_stay(finished: Path) -> None:
    from matplotlib.figure import Figure

    folder = finished / "report"
    made = build_report(find([finished]))
    [densities] = [chart for chart in made.charts if chart.key == "densities"]
    made = replace(made, sections=(replace(made.sections[0], charts=(densities,)),))
    write_report(made, finished)
    (folder / "densities.png").rename(folder / "old.png")
    (folder / "notes.txt").touch()
    (folder / "folder.png").mkdir()
    Figure().savefig(folder / "holiday.png")
    write_report(made, finished)
    assert not (folder / "old.png").exists()
    assert all((folder / name).exists() for name in ("densities.png", "notes.txt", "folder.png", "holiday.png"))


def test_the_page_alone(finished: Path) -> None:
    assert write_report(build_report(find([finished])), finished, images=False)[1] == 0
    assert not (finished / "report").exists()


def test_sweeps_bars_and_bands_are_drawn_by_both(make_run: MakeRun) -> None:
    for density in (0.1, 0.2):
        for seed in (1, 2):
            folder = make_run(f"sweep/{density},{seed}", density=density, seed=seed)
    made = build_report(find([folder.parent]))
    page, n_images = write_report(made, folder.parent / "out")
    assert n_images == len(made.charts) == len(read(page).figures)
    assert {"sweep1_memory", "map_updates_4"} <= set(read(page).figures)


def test_many_names_on_an_axis_are_turned(make_run: MakeRun) -> None:
    from smet_train.report.figures import make_figure
    from smet_train.report.images import draw

    for method in ("a", "b", "c", "d"):
        folder = make_run(f"sweep/{method}", method=method)
    [chart] = [chart for chart in build_report(find([folder.parent])).charts if chart.key == "sweep1_speed"]
    assert make_figure(chart).xaxis[0].major_label_overrides == dict(enumerate("abcd"))
    assert [text.get_text() for text in draw(chart).axes[0].get_xticklabels()] == list("abcd")


def test_a_page_without_charts_says_why(make_run: MakeRun) -> None:
    folder = make_run("begun", layer_densities=None)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(True)[0])
    page, _ = write_report(build_report(find([folder])), folder)
    assert "left out, because no run has taken a step yet" in page.read_text(encoding="utf-8")


def test_names_are_text_and_not_markup(make_run: MakeRun, tmp_path: Path) -> None:
    made = build_report(find([make_run("run", method="</script><b>&$x"), make_run("other")]))
    text = write_report(made, tmp_path / "out", images=False)[0].read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;$x" in text
    assert "<b>" not in text.split("<body>")[1]


def test_five_thousand_steps_stay_below_five_megabytes(make_run: MakeRun) -> None:
    page, _ = write_report(build_report(find([make_run("long", steps=5000)])), make_run("out"), images=False)
    assert page.stat().st_size < 5_000_000


def test_a_folder_that_can_not_be_written_is_said(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="can't be written .*choose another folder with --out") as raised:
        write_report(build_report(find([finished])), tmp_path / "file")
    assert raised.value.exit_status == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_draws_it_without_an_error_or_a_request(make_run: MakeRun, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    runs = [make_run("one"), make_run("two", method="set")]
    page, _ = write_report(build_report(find(runs)), tmp_path / "out", images=False)
    log, picture = tmp_path / "net.json", tmp_path / "page.png"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}",
        "--virtual-time-budget=8000", f"--window-size={width},3000", f"--screenshot={picture}", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said, "bokeh tells when it is done"
    assert not [line for line in said if "INFO:CONSOLE" not in line or re.search("error|refused", line, re.I)]
    assert done.stdout.count('class="bk-Figure"') >= len(read(page).figures)
    assert picture.stat().st_size > 20_000
    requested = re.findall(r'"url":\s*"(https?://[^"]*)"', log.read_text(encoding="utf-8"))
    assert not [url for url in requested if not BROWSERS_OWN.match(url)]
