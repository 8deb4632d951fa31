"""What is planned of a process that holds a part is what it then holds and sends."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from smet_train.analysis.planning import plan_run
from smet_train.config.schema import Config
from smet_train.tracking.jsonl import read_events
from tests.distributed.ranks import FOUR, train

pytestmark = pytest.mark.slow

QuickConfig = Callable[..., Config]
FSDP = "train.parallel=fsdp"


@dataclass(frozen=True)
class Words:
    """The vocabulary of a finished run."""

    vocab_size: int
    eos_id: int = 0

    @classmethod
    def of(cls, folder: Path) -> "Words":
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_bytes_held_and_sent(quick_config: QuickConfig, tmp_path: Path, grow: str) -> None:
    config = quick_config(FSDP, *FOUR, f"topology.grow={grow}")
    train(config, tmp_path, 2)
    events = list(read_events(tmp_path / "metrics.jsonl"))
    [memory] = [event for event in events if event["event"] == "memory"]
    held = {row["kind"]: (row["bytes"], row["dense_bytes"]) for row in memory["kinds"]}
    plan = plan_run(config, vocabulary=Words.of(tmp_path), split_over=2)
    assert {row.kind: (row.bytes, row.dense_bytes) for row in plan.footprint.rows} == held
    sent = {event["sent_bytes"] for event in events if event["event"] == "train"}
    # beside parameters and gradients: the loss, the norm, whether to stop, and the leader's tokens for the other
    assert all(plan.sent_bytes <= n <= plan.sent_bytes + 4096 for n in sent)


def test_a_plan_of_one_process_is_as_it_was(quick_config: QuickConfig) -> None:
    """Nothing is left of the processes that were pretended."""
    config = quick_config(*FOUR)
    before = plan_run(config)
    part = plan_run(config, split_over=4)
    assert plan_run(config).footprint == before.footprint
    assert part.footprint.flops == before.footprint.flops
    assert part.footprint.peak_bytes < before.footprint.peak_bytes
    assert (part.parameters_active, part.parameters_dense) == (before.parameters_active, before.parameters_dense)
    assert before.sent_bytes == 0 < part.sent_bytes
