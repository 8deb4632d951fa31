"""Which runs a path leads to, and what is said where it leads to none."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from smet_train.cli import report as command
from smet_train.report.labels import labels
from smet_train.report.report import build_report
from smet_train.report.runs import ReportError, find, newest_run
from tests.programs import BOTH, without

pytestmark = pytest.mark.slow

MakeRun = Callable[..., Path]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["smet-report", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_without_arguments_it_tells_how_it_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: smet-report [-h] [--version] [--newest]")
    assert call(monkeypatch, "--help") == 0
    assert "smet-report --newest" in capsys.readouterr().out


def test_one_run_is_reported_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    assert call(monkeypatch, finished) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"report +{finished}/report.html \(17 charts, \d\.\d MB\)", printed)
    assert re.search(rf"pictures +17 in {finished}/report\n", printed)


def test_several_runs_are_reported_where_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_run: MakeRun, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (make_run("sweep/a", seed=1).parent / "failed").mkdir()
    (tmp_path / "sweep/failed/console.log").touch()
    make_run("sweep/b", seed=2)
    assert call(monkeypatch, "sweep", "--no-png") == 0
    assert (tmp_path / "outputs/report-sweep/report.html").is_file()
    assert re.search("note +failed wrote no metrics", capsys.readouterr().out)
    assert call(monkeypatch, "sweep/a", "sweep/b", "--no-png") == 0
    assert re.search(r"outputs/report-\w{8}/report.html", capsys.readouterr().out)
    assert call(monkeypatch, "sweep/a", "sweep/b", "--no-png", "--out", "there") == 0
    assert (tmp_path / "there/report.html").is_file()


def test_the_newest_is_the_one_that_was_started_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_run: MakeRun, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = make_run("outputs/first"), make_run("outputs/second")
    for folder in (first, second):
        (folder / ".lock").touch()
        os.utime(folder / ".lock", (1000, 1000))
        os.utime(folder / "metrics.jsonl", (1000, 1000))
    os.utime(first / ".lock", (2000, 2000))
    assert newest_run(Path("outputs")) == Path("outputs/first")
    os.utime(second / "metrics.jsonl", (3000, 3000))
    assert call(monkeypatch, "--newest", "--no-png") == 0
    assert "outputs/second/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--newest", "x"], ["--out", "x"], ["--newst"], ["a", "--out"]])
def test_a_wrong_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert re.fullmatch(r"smet-report: .*smet-report --help.*\n", capsys.readouterr().err)


def test_no_run_says_what_to_type(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run("demo-1a2b3c4d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=r"demo-1a2b3c4 does not exist; did you mean .*/demo-1a2b3c4d\?"):
        find([tmp_path / "demo-1a2b3c4"])
    with pytest.raises(ReportError, match="other does not exist; write for instance smet-report outputs/demo-"):
        find([tmp_path / "empty" / "other"])
    with pytest.raises(ReportError, match="neither a run folder nor a sweep's; write for instance"):
        find([tmp_path / "empty"])
    with pytest.raises(ReportError, match=f"is a file; give its run folder: smet-report {run}"):
        find([run / "metrics.jsonl"])
    with pytest.raises(ReportError, match="holds no run; train one"):
        newest_run(tmp_path / "empty")
    (run / "metrics.jsonl").unlink()
    (run / "config.yaml").touch()
    with pytest.raises(ReportError, match="has no metrics.jsonl yet"):
        find([run])


def test_damage_in_the_middle_is_a_failure_with_its_place(make_run: MakeRun) -> None:
    run = make_run("run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(ReportError, match=r"metrics.jsonl, line 5: .*the line is damaged") as raised:
        find([run])
    assert raised.value.exit_status == 1


def test_metrics_that_can_not_be_read_are_a_failure(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    run = make_run("run")
    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(ReportError, match=r"can't be read \(Permission denied\)"):
        find([run])


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\0"])
def test_settings_only_tell_runs_apart(make_run: MakeRun, text: str) -> None:
    run = make_run("run")
    (run / "config.yaml").write_text(text)
    assert find([run]).runs[0].settings == {}


@BOTH
def test_torch_is_not_read(programs: ModuleType, finished: Path) -> None:
    code = without("torch") + (
        f"from smet_train.cli.report import main\nsys.argv = ['smet-report', {str(finished)!r}, '--no-png']\nmain()\n"
    )
    done = programs.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "report.html (17 charts" in done.stdout


def test_a_run_that_is_training_is_not_disturbed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    find([finished])
    assert {path.name for path in finished.iterdir()} == {path.name for path in (tmp_path / "copy").iterdir()}


def test_runs_that_only_their_paths_tell_apart_are_all_told_of(make_run: MakeRun) -> None:
    folders = [make_run(f"{place}/outputs/demo") for place in ("mine", "yours")]
    assert labels(find(folders).runs) == [str(folder) for folder in folders]
    [summary] = build_report(find(folders)).sections[0].tables
    assert summary.columns == ("run", *map(str, folders))


def test_a_run_that_has_not_written_its_density_is_told_apart(make_run: MakeRun) -> None:
    found = find([make_run("old", density=None), make_run("new")])
    assert labels(found.runs) == ["d=?", "d=0.1"]
    assert build_report(found).title == "smet-train: 2 runs"
