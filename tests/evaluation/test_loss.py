"""The loss of a checkpoint is the one its run recorded, and on any text the mean over each of its tokens."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers

from smet_train.config.schema import Config, DataSource, TextUnit
from smet_train.data.split import is_validation
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import DataError
from smet_train.evaluation.loss import recorded_loss, text_loss
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events
from smet_train.trained import Trained, open_trained

Configure = Callable[..., Config]


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16"])
def test_is_that_of_the_runs_own_evaluations(quick_config: Configure, tmp_path: Path, precision: str) -> None:
    config = quick_config(f"train.precision={precision}", "tracking.probe_windows=2", "data.sequence_tokens=25")
    run_training(config, tmp_path)
    events = [event for event in read_events(tmp_path / "metrics.jsonl") if event["event"] == "eval"]
    for step in (3, 6):
        opened = open_trained(tmp_path / "checkpoints" / f"step_{step:08d}")
        (event,) = [event for event in events if event["step"] == step]
        found = text_loss(opened, split="eval")
        assert found.loss == event["loss"] == recorded_loss(opened)
        assert found.perplexity == event["perplexity"]
        assert found.tokens == event["tokens"] == 100
        assert found.last_window_tokens == 0


def own_sum(trained: Trained, documents: list[str]) -> tuple[float, int]:
    """(nats, tokens) of all tokens of ``documents``, from the logits of one window after the other."""
    eos = trained.tokenizer.eos_id
    ids = [eos, *(token for text in documents for token in [*trained.tokenizer.encode(text), eos])]
    total = 0.0
    for start in range(0, len(ids) - 1, 32):
        window = torch.tensor([ids[start : start + 33]])
        with torch.no_grad():
            logits = trained.model(input_ids=window[:, :-1]).logits
        total -= float(logits.double().log_softmax(-1).gather(2, window[:, 1:, None]).sum())
    return total, len(ids) - 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_on_other_data_counts_every_token(
    trained: Trained, documents: Callable[..., list[str]], tmp_path: Path, batch_size: int
) -> None:
    texts = documents(12, seed=5)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"words": text}) + "\n" for text in texts), encoding="utf-8")
    data = {"source": DataSource.jsonl, "files": [str(path)], "text_field": "words"}
    found = text_loss(trained, split="all", data=data, batch_size=batch_size)
    nats, tokens = own_sum(trained, texts)
    size = sum(len(text.encode()) for text in texts)
    assert found.tokens == tokens
    assert found.windows == math.ceil(tokens / 32)
    assert found.last_window_tokens == tokens % 32 != 0
    assert found.text_bytes == size
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    held_out = text_loss(trained, split="validation", data={**data, "validation_fraction": 0.5})
    assert 0 < held_out.tokens < tokens


def test_the_validation_split_begins_with_the_windows_of_the_evaluations(trained: Trained) -> None:
    told: list[int] = []
    some = text_loss(trained, split="eval", max_tokens=100)
    same = text_loss(trained, split="validation", max_tokens=100, progress=told.append)
    assert (some.tokens, some.windows, some.last_window_tokens) == (100, 4, 4)
    assert (same.loss, same.text_bytes, same.bits_per_byte) == (some.loss, some.text_bytes, some.bits_per_byte)
    assert told == [64, 96, 100]
    whole = text_loss(trained, split="validation")
    assert whole.tokens > text_loss(trained, split="eval").tokens


def test_bits_by_the_true_bytes_of_a_text_that_the_tokenizer_can_not_spell(trained: Trained, tmp_path: Path) -> None:
    """Half of each document is unknown to the tokenizer, and the other half is spelled otherwise: its bytes are not
    those of "<unk>", nor of what the normalizer makes of it."""
    pieces = [("<unk>", 0.0), ("x", -1.0), ("fi", -1.0)]
    unigram = Tokenizer(models.Unigram(pieces, 0, False))
    unigram.normalizer = normalizers.NFKC()  # makes "fi", two letters, of the ligature
    unigram.add_special_tokens(["</s>"])
    other = replace(trained, tokenizer=TextTokenizer(unigram, "</s>"))
    (tmp_path / "texts.txt").write_text("\n".join("x日本語" + "\ufb01" * n for n in range(1, 200)), encoding="utf-8")
    data: dict[str, Any] = {
        "source": DataSource.text, "files": [str(tmp_path / "texts.txt")], "text_unit": TextUnit.line,
        "validation_fraction": 0.5, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    of_data = replace(other, config=replace(other.config, data=replace(other.config.data, **data)))
    held = [text for text in (tmp_path / "texts.txt").read_text("utf-8").split("\n") if is_validation(text, 0.5)]
    sizes = [size for text in held for size in [1, 9, *[3] * (len(text) - 4), 0]]
    for max_tokens in (1, 2, 3, 40, 127):
        for split in ("eval", "validation"):
            found = text_loss(of_data, split=split, max_tokens=max_tokens)
            assert (found.tokens, found.text_bytes) == (max_tokens, sum(sizes[:max_tokens]))
            bits = found.loss * max_tokens / math.log(2)
            assert found.bits_per_byte == pytest.approx(bits / sum(sizes[:max_tokens]), rel=1e-9)
    assert text_loss(of_data, split="validation").text_bytes == sum(len(text.encode()) for text in held)


def test_a_split_without_documents_is_told(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("the model")
    data = {"source": DataSource.text, "files": [str(path)], "validation_fraction": 1e-9}
    with pytest.raises(DataError, match="no document in its validation split"):
        text_loss(trained, split="validation", data=data)


def test_without_metrics_nothing_is_recorded(quick_config: Configure, tmp_path: Path) -> None:
    run_training(quick_config("train.steps=1"), tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    assert recorded_loss(open_trained(tmp_path)) is None
