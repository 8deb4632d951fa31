"""``smet-eval``: what it prints and writes, and what it refuses."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from smet_train.cli import eval as command
from smet_train.evaluation import extra
from smet_train.train import files

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call_script: Call) -> Call:
    """The command with arguments: (exit status, output, errors)."""
    return partial(call_script, command)


def test_usage_and_help(call: Call) -> None:
    status, printed, _ = call()
    assert (status, printed.startswith("usage: smet-eval"), "smet-eval RUN" in printed) == (0, True, True)
    status, printed, _ = call("--help")
    assert (status, "--max-tokens N" in printed) == (0, True)


def test_the_runs_own_loss_is_printed_and_written(call: Call, run_folder: Path) -> None:
    status, printed, _ = call(run_folder)
    written = run_folder / "evals" / "step_00000006-eval.json"
    result = json.loads(written.read_text())
    assert status == 0
    assert f"{result['loss']:.4f} nats a token" in printed
    assert f"written {written}" in printed
    assert result["loss"] == result["recorded_loss"]
    assert result["command"] == ["smet-eval", str(run_folder)]
    assert result["backends"] == ["csr"]
    assert result["step"] == 6
    assert result["tokens"] == 4 * 32
    assert result["seconds"] > 0
    assert {"smet-train", "torch", "transformers", "python"} <= result["versions"].keys()


def test_other_data_and_another_file(call: Call, run_folder: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    checkpoint = run_folder / "checkpoints" / "step_00000003"
    text = ["--data", "text", "--files", corpus, "--text-unit", "line", "--max-tokens", "50"]
    status, printed, _ = call(checkpoint, *text, "--backend", "reference", "--batch-size", "1", "--out", out)
    result = json.loads(out.read_text())
    assert status == 0
    assert "2 of 32 tokens, the last of 18" in printed
    assert (result["step"], result["tokens"], result["split"]) == (3, 50, "all")
    assert result["backends"] == ["reference"]
    assert call(run_folder, *text)[0] == 0
    assert len(list((run_folder / "evals").glob("step_00000006-text-all-????????-max_tokens_50.json"))) == 1


def test_the_name_of_a_file_for_tasks(
    call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        "results": {"a": {"name": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,flexible": 1.0}},
        "n-shot": {"a": 0},
        "n-samples": {"a": {"effective": 7}},
    }
    monkeypatch.setattr("smet_train.evaluation.report.run_tasks", lambda *_, **settings: {**found, "given": settings})
    status, printed, _ = call(run_folder, "--tasks", "a", "--limit", "7", "--task-path", tmp_path)
    assert status == 0
    assert "f1 (flexible)" in printed
    result = json.loads((run_folder / "evals" / "step_00000006-a-limit_7.json").read_text())
    assert result["given"]["limit"] == 7
    assert result["given"]["batch_size"] == 2
    assert call(run_folder, "--tasks", "a", "--limit", "8", "--num-fewshot", "0")[0] == 0
    assert (run_folder / "evals" / "step_00000006-a-limit_8-num_fewshot_0.json").is_file()
    assert not (run_folder / "evals" / "step_00000006-a.json").exists()
    assert call(run_folder, "--tasks", "a" * 70, "b/c")[0] == 0
    assert len(list((run_folder / "evals").glob("step_00000006-tasks-*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; give a run folder"),
        (["RUN", "--data", "texts"], "invalid choice: 'texts'"),
        (["RUN", "--data", "text"], "--data text needs --files GLOB"),
        (["RUN", "--data", "text", "--files", "no/*.txt"], "matches no file"),
        (["RUN", "--data", "hub"], "--data hub needs --name"),
        (["RUN", "--data", "text", "--files", "x", "--split", "eval"], "leave --data out, or write all"),
        (["RUN", "--files", "x"], "--files needs --data text|jsonl|parquet"),
        (["RUN", "--data", "text", "--files", "x", "--hub-split", "test"], "--hub-split needs --data hub"),
        (["RUN", "--limit", "3"], "--limit needs --tasks NAME"),
        (["RUN", "--tasks", "a", "--max-tokens", "3"], "--max-tokens is for a text, not for --tasks"),
        (["RUN", "--tasks", "a", "--task-path", "nowhere"], "--task-path nowhere is no folder"),
        (["RUN", "--max-tokens", "0"], "'0' is not a whole number of at least 1"),
        (["RUN", "--max-tokens", "many"], "'many' is not a whole number of at least 1"),
        (["RUN", "--device", "cuda"], "torch sees no GPU here"),
        (["RUN", "--tokens", "3"], "unrecognized arguments: --tokens 3; see smet-eval --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, _, errors = call(*[run_folder if argument == "RUN" else argument for argument in arguments])
    assert status == 2
    assert message in errors
    assert errors.startswith("smet-eval: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "name", "content", "told"),
    [
        ("text", "nothing.txt", b"", "--files: {path}: the file is empty"),
        ("text", "latin.txt", b"K\xe4se\n", "--files: {path} line 1: it is not UTF-8 text"),
        ("jsonl", "bad.jsonl", b'{"text": "good"}\n{"txet": 1}\n', "bad.jsonl line 2"),
        ("parquet", "bad.parquet", b"PAR0", "{path} is not a Parquet file"),
        ("text", "*.nothing", None, "--files ['{path}'] matches no file"),
    ],
)
def test_a_mistake_in_a_source_is_told_in_flags(
    call: Call, run_folder: Path, tmp_path: Path, kind: str, name: str, content: bytes | None, told: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    status, _, errors = call(run_folder, "--data", kind, "--files", path)
    assert status == 2
    assert told.format(path=path) in errors
    assert "data." not in errors.replace(str(path), "")


def test_without_the_harness_the_extra_is_named(call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda _: None)
    status, _, errors = call(run_folder, "--tasks", "a")
    assert (status, "pip install 'smet-train[eval]'" in errors) == (2, True)


def test_a_file_that_can_not_be_written_is_a_failure(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.replace_text

    def full(path: Path, text: str) -> None:
        if path.name == "out.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, text)

    monkeypatch.setattr(files, "replace_text", full)
    status, _, errors = call(run_folder, "--out", tmp_path / "out.json")
    assert status == 1
    assert "out.json can't be written (No space left on device); write --out FILE" in errors


def test_where_nothing_can_be_written_nothing_is_evaluated(
    call: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smet_train.evaluation.report.text_loss", None)
    (tmp_path / "file").touch()
    status, _, errors = call(run_folder, "--out", tmp_path)
    told = f"smet-eval: --out {tmp_path} is a folder; give a file, for example {tmp_path / 'result.json'}\n"
    assert (status, errors) == (2, told)
    status, _, errors = call(run_folder, "--out", tmp_path / "file" / "out.json")
    assert (status, "file is a file; give another file with --out\n" in errors) == (2, True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    status, _, errors = call(run_folder)
    assert (status, "is read-only here; write --out FILE\n" in errors) == (2, True)


def test_a_damaged_line_of_metrics_loses_no_evaluation(
    call: Call, run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join([lines[0], "broken\n", *lines[1:]]))
    status, _, _ = call(copy)
    assert (status, "metrics.jsonl, line 2: Expecting value" in caplog.text) == (0, True)
    assert "recorded_loss" not in json.loads((copy / "evals" / "step_00000006-eval.json").read_text())


def test_names_are_shown_as_they_are(call: Call, run_folder: Path, corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "a[/b]:x:" / "[red].txt"
    text.parent.mkdir(parents=True)
    text.write_bytes(corpus.read_bytes())
    status, printed, _ = call(
        run_folder, "--data", "text", "--files", text, "--max-tokens", "9", "--out", tmp_path / "o"
    )
    assert status == 0
    assert str(text) in printed.replace("'", "")
    assert "loss on text: 1 file" in printed
    assert "first [red].txt" in printed


def test_a_setting_that_no_flag_gives_is_the_runs(call: Call, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"x" * 50_000_001)
    status, _, errors = call(run_folder, "--data", "text", "--files", tmp_path / "long.txt")
    assert status == 2
    assert "it is longer than the run's data.max_document_bytes=50000000; mend it, or leave" in errors


def test_ctrl_c_ends_it_without_a_traceback(call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smet_train.evaluation.report.text_loss", interrupted)
    assert call(run_folder)[0] == 130
