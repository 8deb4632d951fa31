"""The model card says what the run recorded."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from smet_train.config.compose import compose
from smet_train.export.card import model_card
from smet_train.sparse.ledger import count_parameters
from smet_train.trained import Trained, open_trained

TrainedAs = Callable[[str], Trained]


def test_it_has_the_facts_of_the_run(trained_as: TrainedAs) -> None:
    trained = trained_as("llama_gqa")
    card = model_card(trained, "hf", "little")
    active, dense = count_parameters(trained.model)
    events = [json.loads(line) for line in (trained.run_folder / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "eval"][-1]
    for fact in (
        "# little\n",
        "| architecture | llama, 2 layers of width 64, MLPs of 128, 4 heads (2 for keys and values) |",
        "| method | `smet`, sparse from the first step, its sites moved every 2 steps |",
        "| density | 0.25 of 14 sparse layers, single values; embeddings and all else are dense |",
        f"| parameters | {active:,} active of {dense:,} that the same model has dense (",
        "| trained for | 6 of 6 steps, 768 tokens |",
        f"loss {last['loss']:.4f} nats a token, perplexity {last['perplexity']:.4g}, over {last['tokens']:,} tokens",
        "| data | text files: `corpus.txt` |",
        "| tokenizer | byte-level BPE of ",
        r"| beginning of a text | `<\|endoftext\|>` (id 0), as between documents",
        "| version | smet-train ",
        "license: unknown",
        'AutoModelForCausalLM.from_pretrained("little")',
    ):
        assert fact in card
    assert str(trained.run_folder) not in card


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("dense", "`dense`, every layer dense |\n| density | 1 (dense) |"),
        ("gmp", "`gmp`, pruned while it trained, every 2 steps"),
        ("gpt2_tied_blocks", "2 heads, tied embeddings |"),
        ("gpt2_tied_blocks", "blocks of 16x16"),
        ("bf16", "| precision | `bf16` |"),
    ],
)
def test_it_tells_runs_apart(name: str, fact: str, trained_as: TrainedAs) -> None:
    assert fact in model_card(trained_as(name), "hf", "little")


@pytest.mark.parametrize(
    ("overrides", "fact"),
    [
        (["data=c4"], "| data | `allenai/c4/en/train` from the Hugging Face hub |"),
        (["data=python_source"], "| data | the Python source files of an interpreter's standard library |"),
        (
            ["data=jsonl", "data.files=[/home/me/a.jsonl,https://example.org/b.jsonl]"],
            "| data | jsonl files: `a.jsonl`, `https://example.org/b.jsonl` |",
        ),
        (
            ["data=jsonl", "data.files=['https://me:secret@example.org:8080/a.jsonl?sig=secret#secret']"],
            "| data | jsonl files: `https://example.org:8080/a.jsonl` |",
        ),
        (["data=jsonl", "data.files=['https://me:sec?ret#secret@h/a@b.jsonl']"], "files: `https://h/a@b.jsonl` |"),
        (["data=jsonl", "data.files=['https://h?to=a@b.jsonl']"], "files: `https://h` |"),
        (["data.tokenizer.hub_name=org/name"], "| tokenizer | `org/name` from the Hugging Face hub, "),
        (["data.tokenizer.file=/home/me/tokenizer.json"], "| tokenizer | `tokenizer.json`, "),
        (["method=static"], "`static`, sparse from the first step, its sites as first drawn"),
        (["model=auto", "model.config_file=/home/me/config.json"], "| architecture | llama, from a config.json |"),
    ],
)
def test_every_source_is_named_without_the_authors_folders(
    overrides: list[str], fact: str, trained_as: TrainedAs
) -> None:
    trained = replace(trained_as("llama_gqa"), config=compose(overrides))
    card = model_card(trained, "hf", "little")
    assert fact in card
    assert "/home/me" not in card
    assert "secret" not in card


def test_it_has_the_last_evaluation_before_the_checkpoint(run_of: Callable[[str], Path]) -> None:
    run = run_of("llama_gqa")
    trained = open_trained(run / "checkpoints" / "step_00000003")
    assert "after step 3 |" in model_card(trained, "sparse", "little")


def test_without_readable_metrics_it_says_so(
    run_of: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run_of("llama_gqa"), tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("torn\n" + metrics.read_text())
    with caplog.at_level(logging.WARNING):
        assert "| validation | not recorded |" in model_card(open_trained(tmp_path / "run"), "torch", "little")
    assert "the model card has no validation loss" in caplog.text
