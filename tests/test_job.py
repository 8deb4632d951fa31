"""Whole runs in this process: what a run folder holds, and how runs go on."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from smet_train import build, job
from smet_train.config.schema import Config
from smet_train.errors import CheckpointError, ConfigError, DataError
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events
from smet_train.tracking.names import FIELDS, TIME_FIELDS
from smet_train.train import loop

QuickConfig = Callable[..., Config]
MEASURED_BYTES = ("rss_bytes", "device_bytes")  # what the machine says of the process, beside what the tensors say


class Crash(Exception):
    """Stands for whatever ends a process."""


def train(config: Config, folder: Path) -> str:
    """Run to the end; returns what was printed."""
    console = Console(width=120, record=True, file=io.StringIO(), highlight=False)
    assert run_training(config, folder, console) == 0
    return console.export_text()


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the loop die after the optimizer step ``step``."""
    report_step = loop.report_step

    def report_or_die(run: Any, *facts: Any) -> None:
        report_step(run, *facts)
        if run.state.step == step:
            raise Crash

    monkeypatch.setattr(loop, "report_step", report_or_die)


def trace(folder: Path) -> list[dict[str, Any]]:
    """All events but what depends on the clock and on the machine's memory."""
    return [
        {key: value for key, value in event.items() if key not in TIME_FIELDS and not key.endswith(MEASURED_BYTES)}
        for event in read_events(folder / "metrics.jsonl")
    ]


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """The bytes of all tensors of a checkpoint, and its plain values; the metrics' size depends on the clock."""
    path = folder / "checkpoints" / f"step_{step:08d}"
    content: dict[str, Any] = {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}
    parts = ("model", "optimizer", "random", "topology")
    assert set(content) == {f"{part}.safetensors" for part in parts}
    plain = json.loads((path / "state.json").read_text())
    return {**content, **{key: value for key, value in plain.items() if key not in ("metrics_bytes", "files")}}


@pytest.mark.predicts
def test_a_run_folder_holds_what_the_contract_says(quick_config: QuickConfig, tmp_path: Path) -> None:
    printed = train(quick_config("tracking.probe_windows=2"), tmp_path)
    events = read_events(tmp_path / "metrics.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds[0] == "run"
    assert events[0]["peak_lr"] == {"sparse": [pytest.approx(5e-3)], "embedding": [5e-4], "no_decay": [5e-4]}
    assert "peak rates  0.005 sparse layers (optimizer.lr / density), 0.0005 embeddings" in printed
    assert kinds[-2:] == ["memory", "end"]
    assert kinds.count("train") == 6
    assert [e["step"] for e in events if e["event"] == "topology"] == [2, 4]
    assert [e["step"] for e in events if e["event"] == "eval"] == [0, 3, 6]
    assert [e["step"] for e in events if e["event"] == "topology_map"] == [0, 2, 4]
    [plan] = [event for event in events if event["event"] == "plan"]
    assert plan["step"] == 1
    assert plan["step_flops"] > 0
    assert all(0.05 < density < 0.95 for density in events[0]["layer_densities"].values())
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [3, 6]
    spikes = [e for e in events if e["event"] == "spike"]
    assert sorted((e["step"], e["source"]) for e in spikes) == [
        (s, source) for s in (2, 4) for source in ("probe", "train")
    ]
    assert all(e["beta2"] == 0.999 for e in [events[0], *spikes])
    for event in events:
        missing = set(FIELDS.get(event["event"], {})) - set(event) - {"sent_bytes"}  # of several processes alone
        assert not missing, (event["event"], missing)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["train"]["steps"] == 6
    assert saved["sparsity"]["backend"] == "densify"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000003", "step_00000006"]
    assert "model.layers.*.self_attn.q_proj" in printed
    assert "topology updates" in printed
    assert f"run folder  {tmp_path}\ncheckpoint  checkpoints/step_00000006\n" in printed
    assert f"smet-train resume {tmp_path} train.steps=12 " in printed
    assert "time        about" not in printed  # it is over before that is worth a line


def test_a_run_says_once_how_long_it_will_take_and_the_metrics_do_not_know(
    quick_config: QuickConfig, tmp_path: Path
) -> None:
    printed = train(quick_config("train.steps=20"), tmp_path)
    assert printed.count("time        about ") == 1
    assert "for 20 steps at " in printed
    assert "(measured over steps 2 to 4)" in printed
    assert "for 20 steps" not in (tmp_path / "metrics.jsonl").read_text()


def test_every_token_counts_once_and_every_update_keeps_the_count(quick_config: QuickConfig, tmp_path: Path) -> None:
    config = quick_config()
    train(config, tmp_path)
    events = read_events(tmp_path / "metrics.jsonl")
    per_step = config.train.batch_size * config.data.sequence_tokens
    assert [e["tokens"] for e in events if e["event"] == "train"] == [per_step * step for step in range(1, 7)]
    assert all(e["dropped"] == e["grown"] > 0 for e in events if e["event"] == "topology")
    assert len({e["density"] for e in events if e["event"] == "topology"}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["tracking.probe_windows=2"],
        ["method=set", "optimizer.weight_decay=0.1"],
        ["method=static"],
        ["method=gmp", "optimizer.weight_decay=0.1"],
        ["method=rigl"],
        ["sparsity.backend=csr", "train.activation_checkpointing=true", "tracking.probe_windows=2"],
        ["method=set", "sparsity.backend=block", "sparsity.block_size=16", "sparsity.density=0.25"],
        ["method=smet_rigl", "sparsity.block_size=24", "sparsity.density=0.4", "train.precision=bf16"],
        ["method=smet_rigl", "topology.probe_steps=3", "data.prefetch_batches=1"],
        ["topology.drop=soft_magnitude", "sparsity.allocation=erk", "sparsity.density=0.3"],
        ["topology.drop=magnitude_and_gradient", "topology.drop_schedule=wsd", "tracking.exploration=false"],
        ["method=set", "optimizer.regrow_moments=keep", "sparsity.densities=['*.q_proj=0.5']"],
        ["optimizer.moments=fp8", "sparsity.density=0.6"],
        ["optimizer.moments=fp8", "method=gmp", "train.precision=bf16", "optimizer.weight_decay=0.1"],
        ["optimizer.moments=fp8", "method=set", "optimizer.regrow_moments=keep", "sparsity.density=0.6"],
        ["method=dense"],
        ["train.precision=bf16", "data.prefetch_batches=0"],
        ["train.precision=bf16_mixed", "sparsity.backend=reference"],
        ["model=gpt2_124m", "model.dropout=0.1"],
        ["data.shuffle_documents=1", "optimizer.schedule=wsd", "checkpoint.keep=1"],
    ],
    ids=" ".join,
)
def test_a_crashed_run_goes_on_bit_for_bit(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """Before its first checkpoint, after it, and after a topology update that followed it."""
    config = quick_config(*overrides, "checkpoint.interval=2")
    whole = tmp_path / "whole"
    train(config, whole)
    for died_at in (1, 3, 5):
        broken = tmp_path / f"died at {died_at}"
        with monkeypatch.context() as patch:
            crash_at(patch, died_at)
            with pytest.raises(Crash):
                train(config, broken)
        printed = train(config, broken)
        assert ("resumed" in printed) == (died_at > 2)
        assert checkpoint(broken, 6) == checkpoint(whole, 6), died_at
        assert trace(broken) == trace(whole), died_at


@pytest.mark.slow
@pytest.mark.predicts
def test_a_prediction_moves_nothing_and_is_written_once(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose draws a generator that was moved would change; crashed before and after its event."""
    config = quick_config("model=gpt2_124m", "model.dropout=0.1", "checkpoint.interval=2")
    whole = tmp_path / "whole"
    printed = train(config, whole)
    assert printed.index("step 1/6") < printed.index("in tensors at most, as predicted") < printed.index("step 2/6")
    kinds = [event["event"] for event in trace(whole)]
    assert kinds.count("plan") == 1
    assert kinds[kinds.index("train") + 1] == "plan"
    for died_at in (1, 3):
        broken = tmp_path / f"died at {died_at}"
        with monkeypatch.context() as patch:
            crash_at(patch, died_at)
            with pytest.raises(Crash):
                train(config, broken)
        assert "as predicted" in train(config, broken)
        assert trace(broken) == trace(whole)
    monkeypatch.setattr(job, "predict", lambda *_: ({}, None))
    train(config, tmp_path / "unpredicted")
    assert checkpoint(tmp_path / "unpredicted", 6) == checkpoint(whole, 6)


@pytest.mark.predicts
def test_a_run_of_an_older_version_keeps_its_operations_where_they_are(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stood in its first event."""
    header = build.run_header
    monkeypatch.setattr(job, "run_header", lambda *facts: {**header(*facts), "step_flops": 12})
    train(quick_config(), tmp_path)
    kinds = [event["event"] for event in read_events(tmp_path / "metrics.jsonl")]
    assert "plan" not in kinds
    assert kinds.count("train") == 6


def test_a_finished_run_says_so_and_a_longer_one_goes_on(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    printed = train(quick_config(), tmp_path)
    assert "This run is finished at step 6" in printed
    assert "train.steps=12" in printed
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    printed = train(quick_config("train.steps=8"), tmp_path)
    assert "resumed     at step 6" in printed
    events = read_events(tmp_path / "metrics.jsonl")
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(1, 9))
    # the update that was due after the last step of the shorter run is made up for
    assert [e["step"] for e in events if e["event"] == "topology"] == [2, 4, 6]


@pytest.mark.slow
def test_an_extended_constant_schedule_equals_the_longer_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    """With nothing that depends on the run's length, 6 steps and then 4 more are 10 steps."""
    constant = [
        "optimizer.schedule=constant",
        "optimizer.warmup_fraction=0",
        "topology.drop_schedule=constant",
        "topology.final_drop_fraction=0.2",
        "train.eval_interval=2",
    ]
    train(quick_config(*constant, "train.steps=6"), tmp_path / "extended")
    train(quick_config(*constant, "train.steps=10"), tmp_path / "extended")
    train(quick_config(*constant, "train.steps=10"), tmp_path / "whole")
    extended, whole = checkpoint(tmp_path / "extended", 10), checkpoint(tmp_path / "whole", 10)
    assert extended == whole


def test_another_command_in_the_same_folder_is_refused(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(), tmp_path)
    with pytest.raises(CheckpointError, match=r"sparsity.density=0.1, now sparsity.density=0.2; set it back"):
        run_training(quick_config("sparsity.density=0.2", "train.steps=8"), tmp_path)
    with pytest.raises(CheckpointError, match=r"and 1 more"):
        run_training(quick_config("sparsity.density=0.2", "seed=5", "train.steps=8"), tmp_path)
    train(quick_config("train.steps=7", "train.eval_interval=0", "checkpoint.interval=0"), tmp_path)


def test_a_checkpoint_starts_a_run_in_another_folder(quick_config: QuickConfig, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(quick_config(), first)
    start = f"checkpoint.resume={first}/checkpoints/step_00000003"
    train(quick_config(start, "optimizer.lr=1e-4"), second)
    steps = [e["step"] for e in read_events(second / "metrics.jsonl") if e["event"] == "train"]
    assert steps == [4, 5, 6]
    assert (first / "checkpoints" / "step_00000006").is_dir()
    with pytest.raises(CheckpointError, match=r"model.layers=2, now model.layers=1"):
        run_training(quick_config(start, "model.layers=1"), tmp_path / "third")


def test_going_back_inside_a_folder_sets_later_checkpoints_aside(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(), tmp_path)
    before = trace(tmp_path)
    train(quick_config(f"checkpoint.resume={tmp_path}/checkpoints/step_00000003"), tmp_path)
    assert trace(tmp_path) == before
    assert (tmp_path / "checkpoints" / "superseded_00000006").is_dir()


@pytest.mark.slow
def test_the_command_that_went_back_goes_on_from_what_came_of_it(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_config("train.steps=8", "checkpoint.interval=2", "checkpoint.keep=10")
    train(config, tmp_path)
    before = trace(tmp_path)
    config.checkpoint.resume = f"{tmp_path}/checkpoints/step_00000002"
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(Crash):
            run_training(config, tmp_path)
    assert "resumed     at step 4" in train(config, tmp_path)
    assert trace(tmp_path) == before
    assert "This run is finished at step 8" in train(config, tmp_path)


@pytest.mark.parametrize("overrides", [["seed=5"], ["tracking.map_layer=nothing*"]])
def test_a_refused_command_leaves_the_run_as_it_is(
    quick_config: QuickConfig, tmp_path: Path, overrides: list[str]
) -> None:
    train(quick_config(), tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    back = f"checkpoint.resume={tmp_path}/checkpoints/step_00000003"
    with pytest.raises((CheckpointError, ConfigError)):
        run_training(quick_config("train.steps=8", back, *overrides), tmp_path)
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert found == kept


def test_settings_of_other_data_do_not_take_the_place_of_those_that_a_run_goes_on_with(
    quick_config: QuickConfig, tmp_path: Path, documents: Callable[..., list[str]]
) -> None:
    for name, seed in (("own", 1), ("other", 2)):
        (tmp_path / f"{name}.txt").write_text("\n".join(documents(300, seed=seed)))
    own, other = (
        quick_config(
            "data=text", f"data.files=['{tmp_path}/{name}.txt']", "data.text_unit=line", f"train.steps={steps}"
        )
        for name, steps in (("own", 6), ("other", 8))
    )
    train(own, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(DataError, match="the data has changed since the checkpoint was written"):
        run_training(other, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_run_from_another_one_that_dies_before_its_first_checkpoint_has_every_event_once(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(quick_config(), tmp_path / "first")
    config = quick_config(f"checkpoint.resume={tmp_path}/first/checkpoints/step_00000003", "checkpoint.interval=0")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(Crash):
            run_training(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    assert trace(tmp_path / "broken") == trace(tmp_path / "whole")


def test_a_finished_run_without_checkpoints_keeps_its_record(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    for steps in (6, 5):
        printed = train(quick_config(f"train.steps={steps}"), tmp_path)
        assert "This run is finished at step 6" in printed
        assert "Its checkpoints are gone, so that it can't be extended; to start over" in printed
        assert "the run starts over" not in printed
    with pytest.raises(CheckpointError, match="was finished at step 6, and its checkpoints are gone"):
        run_training(quick_config("train.steps=8"), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_never_refuses_a_folder_with_a_run(quick_config: QuickConfig, tmp_path: Path) -> None:
    train(quick_config("checkpoint.resume=never"), tmp_path)
    with pytest.raises(CheckpointError, match="holds a run already"):
        run_training(quick_config("checkpoint.resume=never"), tmp_path)


def test_a_gpu_that_is_not_there_is_an_error(
    quick_config: QuickConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"train.device=cuda: torch sees no GPU here; write train.device=cpu or auto"):
        run_training(quick_config("train.device=cuda"), tmp_path)


def test_patterns_that_match_no_layer_are_errors(quick_config: QuickConfig, tmp_path: Path) -> None:
    for override in ("sparsity.include=['*.nothing']", "sparsity.exclude=['*.nothing']"):
        with pytest.raises(ConfigError, match=r"nothing"):
            run_training(quick_config(override), tmp_path)


def test_a_short_validation_split_is_a_warning(
    quick_config: QuickConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(quick_config("train.eval_windows=5000", "train.steps=1"), tmp_path)
    assert "fewer than train.eval_windows=5000" in caplog.text


def test_a_processor_that_is_slow_in_the_precision_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, quick_config: QuickConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "slow_products", lambda _, precision: "it is slow" if precision == "bf16" else None)
    train(quick_config("train.precision=bf16", "train.steps=1"), tmp_path / "bf16")
    assert "train.precision=bf16: it is slow; write train.precision=fp32" in caplog.text
    caplog.clear()
    train(quick_config("train.steps=1"), tmp_path / "fp32")
    assert "it is slow" not in caplog.text


@pytest.mark.predicts
def test_a_model_that_can_not_be_planned_is_trained_all_the_same(
    monkeypatch: pytest.MonkeyPatch, quick_config: QuickConfig, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("aten.nonzero.default")

    planned = train(quick_config(), tmp_path / "planned")
    assert "in tensors at most, as predicted" in planned
    assert planned.count("predicted") >= 3  # before, in the summary, and over its column
    monkeypatch.setattr("smet_train.analysis.planning.plan_run", refuse)
    printed = train(quick_config(), tmp_path / "unplanned")
    assert "predicted" not in printed
    [memory] = [e for e in read_events(tmp_path / "unplanned" / "metrics.jsonl") if e["event"] == "memory"]
    assert "planned_peak_bytes" not in memory
