"""``smet-bench`` from the command line, on runs of a few steps."""

import json
import multiprocessing.forkserver
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from smet_train.bench import jobs
from smet_train.bench.jobs import _train, read_outcome, run_jobs
from smet_train.bench.settings import LossBench
from smet_train.cli.bench import help_text, main
from smet_train.config.compose import compose
from smet_train.errors import SmetError
from smet_train.train.lock import LOCK_NAME
from tests import forked
from tests.bench.workers import start_worker

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are forks of the fork server that the tests have, not of one that has imported less, and predict nothing."""
    multiprocessing.forkserver.ensure_running()
    monkeypatch.setattr(jobs, "_start_worker", start_worker)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of ``smet-bench`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["smet-bench", *arguments])
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.mark.parametrize("model", [[], ["model.family=gpt2", "model.dropout=0.1"]], ids=["llama", "dropout"])
def test_spike(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    quick: list[str],
    capsys: pytest.CaptureFixture[str],
    model: list[str],
) -> None:
    settings = ["topology.interval=4", "tracking.spike_horizon_steps=4", "tracking.probe_windows=2", *model]
    out = [f"bench.out={tmp_path}", "bench.warm_steps=4", "bench.updates=2"]
    assert call(monkeypatch, "spike", "+experiment=bench_spike", *quick, *settings, *out) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [set(bar) for bar in result["bars"]] == [{"name", "value", "bar", "holds"}] * 3
    assert set(result["curves"]) == {"none", "drop", "naive", "smet"}
    for update in range(2):
        arms = {arm: result["curves"][arm][update] for arm in result["curves"]}
        # the three that make the update are one model right after it, and have seen the same batch
        assert arms["drop"]["probe"][0] == arms["naive"]["probe"][0] == arms["smet"]["probe"][0]
        assert arms["drop"]["train"][0] == arms["naive"]["train"][0] == arms["smet"]["train"][0]
        assert arms["naive"]["probe"][2] != arms["smet"]["probe"][2] != arms["drop"]["probe"][2]
        assert {len(arm["train"]) for arm in arms.values()} == {4}
        assert {len(arm["probe"]) for arm in arms.values()} == {5}
    # the branches leave no trace: the run itself goes on as if they had not been
    assert result["curves"]["none"][0]["train"][-1] == result["curves"]["none"][1]["before"][-1]
    assert (tmp_path / "spike.png").is_file()
    assert "peak excess" in capsys.readouterr().out


def test_the_branches_leave_the_run_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: list[str]
) -> None:
    """Without branches the run's own losses are the same bit for bit."""
    from smet_train.bench import spike

    settings = ["topology.interval=4", "tracking.spike_horizon_steps=4", "tracking.probe_windows=2"]
    out = ["bench.warm_steps=4", "bench.updates=2"]
    call(monkeypatch, "spike", "+experiment=bench_spike", *quick, *settings, *out, f"bench.out={tmp_path}/a")
    monkeypatch.setattr(spike, "_branch", lambda *_: ([0.0] * 4, [0.0] * 5))
    monkeypatch.setattr(spike, "_return", lambda *_: None)
    call(monkeypatch, "spike", "+experiment=bench_spike", *quick, *settings, *out, f"bench.out={tmp_path}/b")
    first, second = (json.loads((tmp_path / name / "result.json").read_text())["curves"]["none"] for name in "ab")
    assert first == second


def test_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["bench.methods=[static,set,smet]", "bench.densities=[0.25]", "bench.seeds=[1,2]", "bench.tune_steps=2"]
    settings += ["bench.learning_rates=[1e-3,1e-2]", f"bench.out={tmp_path}", "bench.workers=1"]
    command = ["loss", "+experiment=bench_loss", *quick, *settings, "train.steps=4", "train.eval_interval=2"]
    assert call(monkeypatch, *command) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["arms"]) == ["dense", "static_0.25", "set_0.25", "smet_0.25", "small_dense_0.25"]
    assert all(len(arm["final_losses"]) == 2 for arm in result["arms"].values())
    assert list(result["arms"]["smet_0.25"]["curve"]) == ["0", "2", "4"]
    assert [bar["name"][:21] for bar in result["bars"]] == ["density 0.25: static ", "density 0.25: set min"]
    assert (tmp_path / "loss.png").is_file()
    printed = capsys.readouterr().out
    assert "learning-rate grid" in printed
    # typed again, nothing is trained again
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert call(monkeypatch, *command) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}


def test_lr_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: list[str]) -> None:
    settings = ["bench.rules=[none,sqrt]", "bench.densities=[1.0,0.25]", "bench.learning_rates=[1e-3,1e-2,1e-1]"]
    settings += [f"bench.out={tmp_path}", "bench.workers=1", "train.steps=2"]
    assert call(monkeypatch, "lr_rule", "+experiment=bench_loss", *quick, *settings) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["rules"]) == {"none", "sqrt"}
    assert result["rules"]["none"]["losses"]["1"] == result["rules"]["sqrt"]["losses"]["1"]
    assert len(result["bars"]) == 1
    assert (tmp_path / "lr_rule.png").is_file()


def test_a_job_is_trained_whatever_its_folder_is_called(tmp_path: Path, quick: list[str]) -> None:
    _train(compose([*quick, "train.steps=1"]), tmp_path / "a[" / "b]")
    assert read_outcome(tmp_path / "a[" / "b]").losses


def test_a_run_that_fails_is_named(tmp_path: Path, quick: list[str]) -> None:
    config = compose([*quick, "sparsity.include=['lm_head']", "model.tie_embeddings=true"])
    with pytest.raises(SmetError, match="run broken: sparsity.include: layer lm_head can't be .* shares its weight"):
        run_jobs({"broken": config}, tmp_path, 1, print)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped"], "there is no benchmark sped; choose one of spike, loss, lr_rule, speed, memory"),
        (["spike", "bench.updates=1"], "bench.updates=1 is out of range"),
        (["loss", "bench.nothing=1"], "unknown key bench.nothing"),
        (["loss", "sparsity.densty=1"], "unknown key sparsity.densty"),
    ],
)
def test_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) <= 3


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("loss", ["bench.seeds=[]"], "bench.seeds=[] leaves nothing to train"),
        ("spike", ["topology.grow=gradient"], "write topology.grow=random"),
        ("spike", ["topology.drop=magnitude_and_gradient"], "another topology.drop"),
        ("spike", ["topology.stop_at=0.5"], "write topology.stop_at=1"),
    ],
)
def test_settings_that_a_benchmark_cannot_use_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, overrides: list[str], message: str
) -> None:
    assert call(monkeypatch, name, *overrides) == 2
    assert message in capsys.readouterr().err


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    assert capsys.readouterr().out.strip() == help_text().strip()
    assert f"bench.tune_steps={LossBench().tune_steps}" in help_text()


# In a process of the fork server, which would start another one.
_AS_FORK = """
from multiprocessing import forkserver
from smet_train.bench import jobs
from tests.bench.workers import start_worker
forkserver._forkserver.ensure_running = lambda: None
jobs._start_worker = start_worker
"""
_GIVER = """
import sys
from pathlib import Path
from smet_train.bench.jobs import run_jobs
from smet_train.config.compose import compose
if __name__ == "__main__":
    folder, workers, *settings = sys.argv[1:]
    run_jobs({str(n): compose(settings) for n in range(int(workers))}, Path(folder), int(workers), print)
"""
ENDLESS = ("train.steps=1000000", "checkpoint.interval=0", "train.eval_interval=0", "topology.interval=100000")


def workers_of(folder: Path, number: int) -> list[psutil.Process]:
    """Those that train the ``number`` runs in ``folder``, once they do."""
    deadline_s = time.monotonic() + 120
    runs = [folder / str(n) for n in range(number)]
    while time.monotonic() < deadline_s:
        if all((run / "metrics.jsonl").is_file() and '"train"' in (run / "metrics.jsonl").read_text() for run in runs):
            return [psutil.Process(int((run / LOCK_NAME).read_text().split()[0])) for run in runs]
        time.sleep(0.05)
    raise AssertionError(f"in {folder} nothing is trained")


def check_that_they_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    for process in alive:
        process.kill()
    assert not alive


def test_workers_end_with_the_process_that_gives_the_jobs(tmp_path: Path, quick: list[str]) -> None:
    command = [sys.executable, "-c", _AS_FORK + _GIVER, str(tmp_path), "1", *quick, *ENDLESS]
    with forked.Popen(command) as giver:
        try:
            workers = workers_of(tmp_path, 1)
        finally:
            giver.kill()
    check_that_they_end(workers)
    assert list((tmp_path / "0" / "checkpoints").glob("step_*"))  # it has saved before


@pytest.mark.process
def test_workers_are_forks_of_one_process_that_has_imported_what_they_need(tmp_path: Path, quick: list[str]) -> None:
    """It ends with them."""
    script = tmp_path / "giver.py"
    script.write_text(_GIVER)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path), "2", *quick, *ENDLESS]) as giver:
        try:
            workers = workers_of(tmp_path, 2)
            [server] = {worker.parent() for worker in workers}
            assert server is not None
            assert "smet_train.job" in " ".join(server.cmdline())
            started = psutil.Process(giver.pid).children(recursive=True)
        finally:
            giver.kill()
    assert {server, *workers} <= set(started)
    check_that_they_end(started)
