"""``smet-plan``: what it prints, what it finds, and what it refuses."""

import functools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from transformers import GPT2Config

from smet_train.analysis.footprint import Footprint
from smet_train.analysis.planning import plan_run
from smet_train.cli import plan as command
from smet_train.config.compose import compose
from smet_train.errors import ConfigError
from smet_train.plan import largest_micro_batch, micro_batch_sizes, plan_part, ranks_table
from smet_train.sparse.ledger import LedgerRow

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call_script: Call) -> Call:
    """The command with arguments: (exit status, output, errors)."""
    return partial(call_script, command)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage(call: Call, arguments: list[str]) -> None:
    status, printed, _ = call(*arguments)
    assert (status, printed.startswith("usage: smet-plan")) == (0, True)


def test_ctrl_c_ends_it_without_a_traceback(call: Call, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smet_train.plan.print_plan", interrupt)
    assert call(*quick) == (130, "", "\n")


def test_memory_that_runs_out_is_told(call: Call, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    def fill(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("smet_train.plan.print_plan", fill)
    status, _, told = call(*quick)
    assert (status, told.splitlines()[0]) == (1, "smet-plan: out of memory: no more memory")


def test_a_plan_is_printed_and_nothing_is_written(
    call: Call, monkeypatch: pytest.MonkeyPatch, quick: list[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["plan.densities=[0.1,0.5]", "plan.memory_gib=1", "plan.ranks=[1,4]", "sparsity.density=0.25"]
    settings.append("checkpoint.asynchronous=true")
    status, printed, _ = call(*quick, *settings)
    assert status == 0
    assert "q_proj" in printed
    assert re.search(r"values +│ .* 0\.25", printed)
    assert re.search(r"parameters +[\d,]+ active of [\d,]+", printed)
    assert re.search(r"│ +0\.1 │", printed)
    assert re.search(r"│ +0\.5 │", printed)
    assert re.search(r"│ +1 │ .* 0 B │ +0 B │", printed)
    assert re.search(r"│ +4 │ ", printed)
    assert re.search(
        r"in 1 GiB: train.micro_batch_size=\d+, peak [\d.]+ MiB: the whole batch, and more would fit", printed
    )
    assert re.search(r"saving +[\d.]+ MiB more in main memory", printed)
    assert not list(tmp_path.iterdir())


def test_a_dense_plan_has_nothing_to_compare(call: Call, quick: list[str]) -> None:
    status, printed, _ = call(*quick, "method=dense")
    assert status == 0
    assert "ratio 1.000" in printed
    assert "sparse layers" not in printed


def test_processes_share_or_repeat_the_state() -> None:
    def footprint(values: int, rest: int, moments: int) -> Footprint:
        held = {"values": values, "dense rest: parameters": rest, "moments": moments}
        return Footprint([LedgerRow(kind, count, 0) for kind, count in held.items()], 0, 0, 0)

    table = ranks_table(footprint(100, 300, 601), footprint(1000, 300, 0), [1, 4])
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["1", "4"]
    assert cells[1] == ["1001 B", "1001 B"]
    assert cells[2] == ["1001 B", "251 B"]
    assert cells[3] == ["0 B", "600 B"]  # 2 * 3/4 * 400
    assert cells[4] == ["0 B", "1.90 KiB"]
    assert cells[5] == ["0.308", "0.308"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan.zensities=[0.1]"], "unknown key plan.zensities; there is plan.densities, plan.ranks, plan.memory_gib"),
        (["plan.ranks=[0]"], "plan.ranks=[0] is out of range"),
        (["plan.densities=[2]"], "plan.densities=[2.0] is out of range"),
        (["plan.densities=[0.1]", "method=dense"], "choose a sparse method"),
        (["plan.memory_gib=0.000001"], "one sequence of 32 tokens at a time needs"),
        (["sparsity.densities=1"], "sparsity.densities"),
        (["model.layer=2"], "unknown key model.layer"),
        (["data.tokenizer.file=nowhere.json"], "data.tokenizer.file=nowhere.json doesn't exist"),
        (["sparsity.include=['*.nothing']"], "matches none of the"),
    ],
)
def test_mistakes_are_told_in_a_message(call: Call, quick: list[str], arguments: list[str], message: str) -> None:
    status, _, told = call(*quick, *arguments)
    assert status == 2
    assert told.startswith("smet-plan: ")
    assert message in told
    assert "Traceback" not in told


def test_the_largest_micro_batch_is_the_largest_that_fits(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([*quick, "model.layers=1", "train.batch_size=12", "train.micro_batch_size=1"])
    planned = functools.cache(lambda size: plan_run(config, size))
    monkeypatch.setattr("smet_train.plan.plan_run", lambda _, size, split_over: planned(size // split_over))
    peaks = {size: plan_run(config, size).footprint.peak_bytes for size in (1, 2, 3, 4, 6, 12)}
    assert list(peaks.values()) == sorted(peaks.values())
    for size, peak in peaks.items():
        assert largest_micro_batch(config, peak) == (size, peak)
        if size > 1:
            assert largest_micro_batch(config, peak - 1)[0] < size
    with pytest.raises(ConfigError, match="at a time needs"):
        largest_micro_batch(config, peaks[1] - 1)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_micro_batch_of_several_processes_is_one_that_they_can_share(quick: list[str], parallel: str) -> None:
    settings = [*quick, "train.batch_size=12", "train.processes=2", f"train.parallel={parallel}"]
    config = compose([*settings, "train.micro_batch_size=1"])
    assert micro_batch_sizes(config) == [1, 2, 3, 6]
    size, _ = largest_micro_batch(config, 2**40)
    assert compose([*settings, f"train.micro_batch_size={size}"]).train.micro_batch_size == 6


def test_a_fused_step_is_planned_of_the_whole_batch(call: Call, quick: list[str]) -> None:
    settings = ["train.batch_size=4", "train.micro_batch_size=4", "train.fused_backward_step=true"]
    settings.append("optimizer.grad_clip=0")
    config = compose([*quick, *settings])
    peak = plan_run(config).footprint.peak_bytes
    assert largest_micro_batch(config, peak) == (4, peak)
    assert "train.micro_batch_size=4, peak" in call(*quick, *settings, "plan.memory_gib=1")[1]
    with pytest.raises(ConfigError, match="takes the train.batch_size=4 sequences of 32 tokens at a time, which need"):
        largest_micro_batch(config, peak - 1)


def test_of_processes_that_hold_a_part_one_is_planned(call: Call, quick: list[str]) -> None:
    settings = ["train.batch_size=4", "train.micro_batch_size=1", "train.parallel=fsdp", "sparsity.density=0.25"]
    status, printed, _ = call(*quick, *settings, "train.processes=2", "plan.ranks=[2]", "plan.memory_gib=1")
    assert status == 0
    assert "figures are of one of 2 processes that hold a part each" in printed
    assert "by each process in a step, for parameters and gradients, dense" in printed
    assert "train.micro_batch_size=2, peak" in printed  # the four of a step are shared by two
    assert "write train.processes=N for one of N" in call(*quick, *settings)[1]
    config = compose([*quick, *settings, "train.processes=2"])
    assert largest_micro_batch(config, plan_part(config, 1).footprint.peak_bytes)[0] == 1


def test_a_named_tokenizer_gives_the_vocabulary(quick: list[str], tmp_path: Path) -> None:
    from smet_train.build_data import build_data
    from smet_train.sparse_model import planned_vocabulary

    data = build_data(compose(quick), None)
    data.batches.close()
    data.tokenizer.save(tmp_path)
    named = planned_vocabulary(compose([*quick, f"data.tokenizer.file={tmp_path}/tokenizer.json"]))
    assert (named.vocab_size, named.eos_id) == (data.tokenizer.vocab_size, data.tokenizer.eos_id)


def test_a_plan_says_that_it_can_not_see_whether_a_model_is_causal(
    call: Call, quick: list[str], tmp_path: Path
) -> None:
    GPT2Config(n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    unshaped = [item for item in quick if item != "+debug=quick"]
    small = ["train.batch_size=2", "train.micro_batch_size=2", "data.sequence_tokens=16"]
    status, printed, _ = call(*unshaped, *small, "model=auto", f"model.config_file={tmp_path}/config.json")
    assert status == 0
    assert "causal      is seen by smet-train when it builds the model" in printed
    assert "causal " not in call(*quick)[1]
