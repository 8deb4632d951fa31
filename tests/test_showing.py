"""Text where it leaves the program: it does nothing there, and lets nobody in."""

import csv
import io
import json
import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from smet_train.analysis.summary import print_run_summary
from smet_train.analysis.sweep import COLUMNS, sweep_rows, write_sweep_csv
from smet_train.cli.ends import run_to_the_end
from smet_train.config.plain import to_dict
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.report.charts import Axis, Chart, Series
from smet_train.report.images import draw_images
from smet_train.report.report import build_report, write_report
from smet_train.report.runs import ReportError, find
from smet_train.showing import ShownFormatter, all_shown, cell, visible, without_secrets
from smet_train.tracking.console import open_console
from smet_train.tracking.streams import LastingStream, ShownStream, lasting, let_output_encode_anything, unchanged

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{ \x1b]0;x\x07 \x9b2J =1+1 \u202e'


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://me:secret@host/a.txt", "https://host/a.txt"),
        ("https://token@host/a.txt", "https://host/a.txt"),
        ("https://me:p@s:s?w#@host/a.txt", "https://host/a.txt"),
        ("https://host/a.txt?X-Amz-Signature=abc&b=1#part", "https://host/a.txt"),
        ("[https://host/a?sig=1,https://me:x@host/b?sig=2]: HTTP 403", "[https://host/a,https://host/b]: HTTP 403"),
        ("can't read https://host/a?sig=1: no such file", "can't read https://host/a: no such file"),
        ("'s3://key:secret@bucket/a' and 's3://bucket/b'", "'s3://bucket/a' and 's3://bucket/b'"),
        ("postgresql://me:secret@host:5432/studies", "postgresql://host:5432/studies"),
        ("zip://a.txt::https://me:x@host/b.zip?sig=1", "zip://a.txt::https://host/b.zip"),
        ("files /a?b and me@host stay; https://host/path, too", "files /a?b and me@host stay; https://host/path, too"),
    ],
)
def test_what_lets_one_into_a_server_is_left_out(text: str, left: str) -> None:
    assert without_secrets(text) == left


def test_control_characters_are_escapes() -> None:
    assert visible("a\x1b[2J\x07\x9b\u202e\tb\n\r") == "a\\x1b[2J\\x07\\x9b\\u202e\tb\n\\r"
    assert all_shown({"\x1b": ["https://a:b@c/d", 1, None]}) == {"\\x1b": ["https://c/d", 1, None]}


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    assert [cell(value) for value in ("=1", "+x", "-x", "@x", "-1.5", "+3", "-inf", 2.5, None, "a=b")] == [
        "'=1", "'+x", "'-x", "'@x", "-1.5", "+3", "-inf", 2.5, None, "a=b"
    ]  # fmt: skip
    row = dict.fromkeys(COLUMNS) | {"name": "=cmd", "error": "@ https://a:b@c/d\x1b", "train_loss": -1.5}
    write_sweep_csv(tmp_path / "sweep.csv", [row])
    (read,) = csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text()))
    assert (read["name"], read["error"], read["train_loss"]) == ("'=cmd", "'@ https://c/d\\x1b", "-1.5")


def test_a_line_of_a_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "from %s\x1b", ("https://a:b@c/d",), None)
    assert ShownFormatter("%(message)s").format(record) == "from https://c/d\\x1b"


def test_streams_and_the_console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    let_output_encode_anything()
    let_output_encode_anything()
    assert isinstance(sys.stdout, ShownStream)
    print("\x1b[2J written https://host/?q=1")
    sys.stderr.writelines(["\x1b[2J https://a:b@c/d\n"])
    open_console().print("\x1b[2J https://a:b@c/d")
    out, err = capsys.readouterr()
    # what a model writes is not changed but for its control characters
    assert out == "\\x1b[2J written https://host/?q=1\n\\x1b[2J https://c/d\n"
    assert err == "\\x1b[2J https://c/d\n"
    inner_stdout: Any = sys.stdout
    inner = unchanged(sys.stdout)
    assert not isinstance(inner, ShownStream)
    assert isinstance(unchanged(lasting(inner_stdout)), LastingStream)
    with pytest.raises(SystemExit):
        run_to_the_end("smet-x", lambda: (_ for _ in ()).throw(ConfigError("\x1b https://a:b@c/d")))
    assert capsys.readouterr().err == "smet-x: \\x1b https://c/d\n"


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs if name.startswith("on"))))


def report_of(folder: Path, word: str) -> tuple[list[tuple[str, tuple[str, ...]]], str]:
    """The page of a sweep in which everything that may be a text holds ``word``: its elements, and its text."""
    for number in range(3):
        settings = {**to_dict(Config()), word: float(number + 1), "data": {word: [word]}}
        events = [
            {"event": "run", "method": word, "density": 0.1, "seed": number, "layer_densities": {word: 0.1},
             "init_from": word, word: word},
            *({"event": "train", "step": step, "loss": 2.0, "tokens": step, "tokens_per_s": 1.0, "lr": 1.0,
               "grad_norm": 1.0, "time_s": 1.0} for step in (1, 2)),
            {"event": "topology_map", "step": 1, "layer": word, "out_features": 2, "in_features": 2,
             "grid": [[0.1, 0.2], [0.3, 0.4]]},
            {"event": "eval", "step": 2, "loss": 1.0 + number, "perplexity": 2.0},
            {"event": "spike", "step": 1, "source": word, "baseline": 1.0, "peak": 2.0, "spike": 1.0,
             "recovery_steps": 1, "horizon_steps": 3},
            {"event": "memory", "step": 2, "peak_rss_bytes": 1,
             "kinds": [{"kind": word, "bytes": 1, "dense_bytes": 2}]},
            {"event": "end", "step": 2, "reason": word},
        ]  # fmt: skip
        run = folder / f"_{number} $x"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page, pictures = write_report(build_report(find([folder])), folder / "out")
    assert pictures == len(list((folder / "out" / "report").iterdir())) > 0
    elements, text = Elements(), page.read_text(encoding="utf-8")
    elements.feed(text)
    return elements.found, text


@pytest.mark.slow
def test_nothing_in_a_report_runs_and_no_secret_is_in_it(tmp_path: Path) -> None:
    plain, _ = report_of(tmp_path / "plain", "word")
    hostile, text = report_of(tmp_path / "hostile", HOSTILE + " https://me:secret@host/a?X-Signature=abc")
    assert sorted(plain) == sorted(hostile)
    own = text[text.index("<body>") :]
    assert not re.search(r"<img|secret|Signature", own.replace("&lt;", ""))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", own)
    assert "https://host/a" in own


def test_a_picture_is_written_beside_the_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no plain file name"):
        draw_images([Chart("../x", "", Axis("x"), Axis("y"))], tmp_path)
    chart = Chart("x", "$\\frac{", Axis("$x"), Axis("$"), (Series("_a", (1.0,), (1.0,)), Series("$_{", (1.0,), (2.0,))))
    assert draw_images([chart], tmp_path) == [tmp_path / "x.png"]


def test_metrics_that_no_run_writes_are_told(tmp_path: Path) -> None:
    for number, event in enumerate(
        ({"event": "train", "step": [1]}, {"event": "memory", "kinds": 3}, {"event": "spike", "spike": "x"})
    ):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        with pytest.raises(ReportError, match="what is recorded of these runs holds what smet-train never writes"):
            build_report(find([run]))


def test_a_summary_of_metrics_that_no_run_writes_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for event in ({"event": "train", "step": 1}, {"event": "eval", "loss": "x"}, {"event": "memory"}):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        caplog.clear()
        print_run_summary(open_console(), tmp_path)
        assert "metrics.jsonl holds what smet-train never writes" in caplog.text
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"event": "train", "step": 1}) + "\n")
    (row,) = sweep_rows([{"name": "a", "status": "done", "error": None, "wall_s": 1.0, "folder": str(tmp_path)}])
    assert (row["name"], row["train_loss"]) == ("a", None)
