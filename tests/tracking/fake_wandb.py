"""A stand-in for the module wandb, which remembers what it was asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FakeRun:
    def __init__(self, summary: dict[str, Any]) -> None:
        self.id = "abc"
        self.url = "https://wandb.example/abc"
        self.summary = summary
        self.rows: list[dict[str, Any]] = []
        self.axes: dict[str, str | None] = {}
        self.artifacts: list[Any] = []
        self.finished_with: list[int | None] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int | None = None) -> None:
        self.finished_with.append(exit_code)


class FakeArtifact:
    def __init__(self, name: str, type: str) -> None:
        self.name, self.type, self.files = name, type, list[str]()
        self.texts: dict[str, str] = {}

    def add_file(self, path: str, name: str) -> None:
        self.files.append(name)
        self.texts[name] = Path(path).read_text(encoding="utf-8")


class FakeWandb:
    """Stands in for the module; ``server`` is what a server holds of the run, None if there is no network."""

    Settings = SimpleNamespace
    Artifact = FakeArtifact

    def __init__(self, server: dict[str, Any] | None = None) -> None:
        self.server = server
        self.runs: list[FakeRun] = []
        self.begun: list[dict[str, Any]] = []
        self.torn_down = 0

    def setup(self, settings: Any) -> None:
        assert settings.silent

    def init(self, **how: Any) -> FakeRun:
        self.begun.append(how)
        if how["mode"] == "online" and self.server is None:
            raise OSError("no such host\nand a hint")
        self.runs.append(FakeRun(self.server or {}))
        return self.runs[-1]

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        return columns, data

    def teardown(self) -> None:
        self.torn_down += 1
