"""The wandb sink against a stand-in for wandb, and against wandb itself without a network."""

import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from smet_train.tracking import wandb_sink
from smet_train.tracking.shelter import Sheltered
from smet_train.tracking.wandb_sink import WandbSettings, WandbSink, abandon, open_wandb, stored_id
from tests import forked
from tests.programs import BOTH
from tests.tracking.fake_wandb import FakeWandb
from tests.tracking.read_back import wandb_points, wandb_rows
from tests.tracking.wandb_server import WandbServer

pytestmark = pytest.mark.slow

STEP = {"event": "train", "step": 10, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "tokens": 100, "tokens_per_s": 50.0}
SPIKE = {"event": "spike", "step": 8, "source": "probe", "baseline": 1.0, "peak": 1.5, "spike": 0.5}
END = {"event": "end", "step": 12, "reason": "finished"}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeWandb], FakeWandb]:
    """Have the sink find this module as wandb, in an environment that does not ask for offline runs."""
    monkeypatch.delenv("WANDB_MODE")

    def put(fake: FakeWandb) -> FakeWandb:
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return put


def open_fake(tmp_path: Path, mode: str = "online", **more: Any) -> WandbSink:
    return open_wandb(WandbSettings(mode, "p", "1a2b3c4d", **more), tmp_path, {"seed": 1})


def test_a_run_is_begun_with_what_was_asked_for(use: Callable[[FakeWandb], FakeWandb], tmp_path: Path) -> None:
    fake = use(FakeWandb(server={}))
    sink = open_fake(tmp_path, entity="team", group="sweep", tags=("a", "b"))
    (how,) = fake.begun
    assert (how["project"], how["entity"], how["group"], how["tags"]) == ("p", "team", "sweep", ["a", "b"])
    assert (how["mode"], how["resume"], how["name"], how["config"]) == ("online", "allow", tmp_path.name, {"seed": 1})
    assert how["settings"].console == "off"
    assert how["settings"].init_timeout <= 20
    assert sink.note == "https://wandb.example/abc"


def test_every_metric_has_the_step_axis_of_its_kind(use: Callable[[FakeWandb], FakeWandb], tmp_path: Path) -> None:
    fake = use(FakeWandb(server={}))
    sink = open_fake(tmp_path)
    for event in (STEP, SPIKE, {"event": "run", "seed": 1}):
        sink.emit(event)
    (run,) = fake.runs
    assert run.axes["train/*"] == "train/step"
    assert run.axes["spike/probe_*"] == "spike/probe_step"
    assert run.axes["spike/train_*"] == "spike/train_step"
    assert run.rows == [
        {f"train/{key}": value for key, value in STEP.items() if key != "event"},
        {"spike/probe_baseline": 1.0, "spike/probe_peak": 1.5, "spike/probe_spike": 0.5, "spike/probe_step": 8},
    ]


def test_the_id_is_that_of_the_folder_until_another_run_starts_in_it(tmp_path: Path) -> None:
    first = stored_id(tmp_path / "wandb", "1a2b3c4d", fresh=True)
    assert first.startswith("1a2b3c4d-")
    assert stored_id(tmp_path / "wandb", "1a2b3c4d", fresh=True) == first  # killed before its first checkpoint
    moved = tmp_path / "moved"
    (tmp_path / "wandb").rename(moved)
    assert stored_id(moved, "0f0f0f0f", fresh=False) == first  # it goes on with its data elsewhere, say
    second = stored_id(moved, "0f0f0f0f", fresh=True)
    assert second.startswith("0f0f0f0f-")
    assert stored_id(moved, "0f0f0f0f", fresh=False) == second
    assert stored_id(tmp_path / "other", "0f0f0f0f", fresh=True) != second


def test_names_are_as_long_as_wandb_takes(
    use: Callable[[FakeWandb], FakeWandb], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep's folders have the names of what is swept."""
    fake = use(FakeWandb(server={}))
    names = ["x" * 128, "x" * 129, "x" * 130]
    for name in names:
        (tmp_path / name).mkdir()
        settings = WandbSettings("online", "project", "1a2b3c4d", group=f"sweep-{name}")
        open_wandb(settings, tmp_path / name, {})
    begun = [how["name"] for how in fake.begun]
    assert begun[0] == names[0]
    assert len({*begun}) == 3
    assert all(len(how[key]) == 128 for how in fake.begun for key in ("name", "group"))
    assert f"{names[1]} is called {begun[1]} there" in caplog.text


def test_what_the_server_has_is_not_sent_again(use: Callable[[FakeWandb], FakeWandb], tmp_path: Path) -> None:
    """Killed at step 12, resumed at 10: the repeated steps are left out, what did not arrive is sent."""
    fake = use(FakeWandb(server={"train/step": 12, "spike/probe_step": 3}))
    sink = open_fake(tmp_path)
    for step in range(1, 15):
        sink.emit({**STEP, "step": step})
    sink.emit(SPIKE)
    (run,) = fake.runs
    assert [row["train/step"] for row in run.rows if "train/step" in row] == [13, 14]
    assert [row["spike/probe_step"] for row in run.rows if "spike/probe_step" in row] == [8]


def test_without_a_network_the_run_is_offline_with_one_warning(
    use: Callable[[FakeWandb], FakeWandb], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = use(FakeWandb(server=None))
    sink = open_fake(tmp_path)
    assert [how["mode"] for how in fake.begun] == ["online", "offline"]
    assert "resume" not in fake.begun[1]
    assert fake.begun[0]["id"] == fake.begun[1]["id"]
    assert fake.torn_down == 1
    (told,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "(no such host)" in told
    assert told.endswith(f"To send it later: wandb sync {tmp_path}/wandb/offline-run-*-{fake.begun[0]['id']}")
    assert sink.note == told.rpartition(": ")[2]


def test_an_environment_that_says_offline_is_obeyed(
    use: Callable[[FakeWandb], FakeWandb], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(FakeWandb(server={}))
    monkeypatch.setenv("WANDB_MODE", "offline")
    open_fake(tmp_path)
    assert [how["mode"] for how in fake.begun] == ["offline"]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_takes_the_place_of_what_was_recorded_of_it_and_not_sent(
    use: Callable[[FakeWandb], FakeWandb], tmp_path: Path, mode: str
) -> None:
    use(FakeWandb(server={}))
    run_id = stored_id(tmp_path / "wandb", "1a2b3c4d", fresh=True)
    outdated, other = tmp_path / f"wandb/offline-run-1-{run_id}", tmp_path / "wandb/offline-run-1-other"
    outdated.mkdir()
    other.mkdir()
    open_fake(tmp_path, mode)
    assert not outdated.exists()
    assert other.exists()


def test_what_a_server_has_is_recorded_offline_under_another_id(
    use: Callable[[FakeWandb], FakeWandb], tmp_path: Path
) -> None:
    """And online again under its own. What was sent is not removed."""
    fake = use(FakeWandb(server={}))
    open_fake(tmp_path)
    fake.server = None
    open_fake(tmp_path)
    sent = tmp_path / f"wandb/offline-run-1-{fake.begun[-1]['id']}"
    sent.mkdir()
    (sent / "x.wandb.synced").touch()
    open_fake(tmp_path)
    fake.server = {}
    open_fake(tmp_path)
    run_id = fake.begun[0]["id"]
    begun = [(how["mode"], how["id"]) for how in fake.begun]
    assert begun == [
        ("online", run_id),
        *[("online", run_id), ("offline", f"{run_id}-2")],
        *[("online", run_id), ("offline", f"{run_id}-3")],
        ("online", run_id),
    ]
    assert sent.exists()


@pytest.mark.parametrize(("reason", "exit_code"), [("finished", None), ("SIGTERM", 1), ("OSError: gone", 1)])
def test_the_end_has_the_table_of_spikes_and_how_it_ended(
    use: Callable[[FakeWandb], FakeWandb], tmp_path: Path, reason: str, exit_code: int | None
) -> None:
    fake = use(FakeWandb(server={}))
    sink = open_fake(tmp_path)
    for event in (SPIKE, {**SPIKE, "source": "train"}, {**END, "reason": reason}):
        sink.emit(event)
    (tmp_path / "report.html").write_text("of https://me:secret@host/a?signature=b, run")
    sink.attach("report", [tmp_path / "report.html"])
    sink.close()
    (run,) = fake.runs
    columns, rows = run.rows[-1]["spike/table"]
    assert [dict(zip(columns, row, strict=True))["source"] for row in rows] == ["probe", "train"]
    assert run.finished_with == [exit_code]
    assert fake.torn_down == 1
    (artifact,) = run.artifacts
    assert (artifact.name, artifact.type, artifact.files) == ("report-abc", "report", ["report.html"])
    assert artifact.texts == {"report.html": "of https://host/a, run"}


# With wandb itself, offline.


@pytest.fixture
def real() -> Iterator[None]:
    pytest.importorskip("wandb")
    yield
    abandon()


@pytest.mark.usefixtures("real")
def test_wandb_itself_keeps_every_point_on_its_axis(tmp_path: Path) -> None:
    folder = tmp_path / "a run, with=signs"  # as a sweep names them
    folder.mkdir()
    for last in (3, 5):
        sink = open_wandb(WandbSettings("offline", "p", "1a2b3c4d", group="g", tags=("t",)), folder, {"seed": 1})
        for step in range(last):
            sink.emit({**STEP, "step": step, "loss": "nan" if step == 1 else step / 3})
        sink.emit(SPIKE)
        sink.emit(END)
        sink.close()
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = wandb_rows(file)
    points = wandb_points(rows)
    assert [step for step, _ in points["train/loss"]] == list(range(5))
    assert points["train/loss"][2] == (2, 2 / 3)
    assert points["spike/probe_peak"] == [(8, 1.5)]
    assert sum("spike/table" in str(row) for row in rows) == 1


def cores() -> list[psutil.Process]:
    """wandb's own processes that are alive."""
    children = psutil.Process().children()
    return [child for child in children if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_wandb_that_dies_or_hangs_holds_nothing_up(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[WandbSink] = []

    def start() -> WandbSink:
        opened.append(open_wandb(WandbSettings("offline", "p", "1a2b3c4d"), tmp_path, {}))
        return opened[0]

    shelter = Sheltered("tracking.wandb", start, abandon=abandon, close_s=3.0)
    shelter.emit(STEP)
    deadline_s = time.monotonic() + 60
    while not opened and time.monotonic() < deadline_s:
        time.sleep(0.01)
    (core,) = cores()
    core.send_signal(number)
    for step in range(100):
        shelter.emit({**STEP, "step": step})
    shelter.close()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("smet_train")]
    (told,) = (message for message in ours if message.startswith("tracking."))
    assert "training goes on without it" in told
    assert not cores()


ASKS = """
import sys
from pathlib import Path
from smet_train.tracking.wandb_sink import WandbSettings, open_wandb
sink = open_wandb(WandbSettings("online", "p", "1a2b3c4d"), Path(sys.argv[1]), {})
sink.emit({"event": "eval", "step": 1, "loss": 1.0})
sink.close()
"""


@BOTH
@pytest.mark.usefixtures("real")
def test_without_a_key_nothing_is_asked_even_on_a_terminal(programs: ModuleType, tmp_path: Path) -> None:
    hidden = {"WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    master, terminal = pty.openpty()
    done = programs.run(
        [sys.executable, "-c", ASKS, str(tmp_path)],
        env=environment, cwd=tmp_path, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, timeout=120,
    )  # fmt: skip
    os.close(terminal)
    told = os.read(master, 10_000).decode()
    os.close(master)
    assert done.returncode == 0
    assert "recorded offline. To send it later: wandb sync" in told
    assert "No API key configured" in told
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


SESSION = """
import sys
from pathlib import Path
from smet_train.tracking.wandb_sink import WandbSettings, open_wandb
mode, folder, last = sys.argv[1:]
sink = open_wandb(WandbSettings(mode, "p", "1a2b3c4d", entity="me"), Path(folder), {})
for step in range(1, int(last) + 1):
    sink.emit({"event": "train", "step": step, "loss": step / 3})
    if step == 4:
        sink.emit({"event": "spike", "step": 2, "source": "train", "spike": 0.5})
sink.close()
print(sink.note)
"""


def session(programs: ModuleType, server: WandbServer, folder: Path, mode: str, last: int) -> str:
    """What a process prints that goes on with the run to step ``last``."""
    words = [sys.executable, "-c", SESSION, mode, str(folder), str(last)]
    return programs.run(words, env=server.environment(folder), check=True, capture_output=True, text=True).stdout


@BOTH
@pytest.mark.usefixtures("real")
def test_a_server_gets_every_point_once_however_often_the_run_goes_on(programs: ModuleType, tmp_path: Path) -> None:
    """wandb itself, with a server of ours: what was sent before a run went on is told to it by its summary."""
    with WandbServer() as server:
        for last in (3, 5, 7):  # each process has the whole history, as after a kill
            session(programs, server, tmp_path, "online", last)
        rows = server.rows("p", (tmp_path / "wandb/run_id.txt").read_text().strip())
    assert [row["train/step"] for row in rows if "train/step" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["spike/train_step"] for row in rows if "spike/train_step" in row] == [2]


@pytest.mark.process
@pytest.mark.usefixtures("real")
def test_what_was_recorded_offline_is_sent_whole_by_the_command_that_is_told(tmp_path: Path) -> None:
    with WandbServer() as server:
        session(forked, server, tmp_path, "online", 3)
        session(forked, server, tmp_path, "offline", 5)
        command = session(forked, server, tmp_path, "offline", 7).strip()
        program, _, rest = command.partition(" ")
        assert program == "wandb"
        subprocess.run(
            f"{sys.executable} -m wandb {rest}", shell=True, check=True, capture_output=True,
            env=server.environment(tmp_path),
        )  # fmt: skip
        run_id = (tmp_path / "wandb/run_id.txt").read_text().strip()
        runs = [server.rows("p", run_id), server.rows("p", f"{run_id}-2")]
    steps = [[row["train/step"] for row in rows if "train/step" in row] for rows in runs]
    assert steps == [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7]]


def test_teardown_of_a_wandb_that_is_gone_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> None:
        raise ConnectionResetError

    wandb_sink.teardown(SimpleNamespace(teardown=gone))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
