"""Every YAML file composes, validates, and takes one step when its sizes are shrunken."""

from pathlib import Path

import pytest
from rich.console import Console
from transformers import GPT2Config

from smet_train.config.compose import compose
from smet_train.config.locate import config_folder, group_options, groups
from smet_train.config.plain import from_dict, to_dict
from smet_train.config.schema import DataSource, TextUnit
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events

# What these options can't do without.
NEEDED = {
    ("data", "text"): ["data.files=[a.txt]"],
    ("data", "jsonl"): ["data.files=[a.jsonl]"],
    ("data", "parquet"): ["data.files=[a.parquet]"],
    ("data", "hub"): ["data.name=owner/name"],
    ("model", "auto"): ["model.config_file=config.json"],
}
OPTIONS = [(group, option) for group in groups() for option in group_options(group)]


def choice(group: str, option: str) -> list[str]:
    return [
        f"{'+' if group in ('cluster', 'debug', 'experiment', 'sweep') else ''}{group}={option}",
        *NEEDED.get((group, option), []),
    ]


def test_no_yaml_file_is_left_out() -> None:
    files = {path.relative_to(config_folder()).as_posix() for path in config_folder().rglob("*.yaml")}
    assert files == {"train.yaml", *(f"{group}/{option}.yaml" for group, option in OPTIONS)}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_composes_and_validates(group: str, option: str) -> None:
    config = compose(choice(group, option))
    assert from_dict(to_dict(config)) == config


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_shrunken_copy_takes_a_step(group: str, option: str, tmp_path: Path, corpus: Path, cache_dir: Path) -> None:
    config = compose(choice(group, option))
    if config.model.config_file is None:
        config.model.hidden_size, config.model.intermediate_size = 32, 48
        config.model.layers, config.model.heads, config.model.kv_heads = 2, 4, None
    else:
        GPT2Config(n_embd=32, n_layer=1, n_head=4).save_pretrained(tmp_path)
        config.model.config_file = str(tmp_path / "config.json")
    # Only the text is exchanged for one that is on this machine; the sources have tests of their own.
    config.data.source, config.data.files = DataSource.text, [str(corpus)]
    config.data.text_unit = TextUnit.line
    config.data.cache_dir, config.data.sequence_tokens = str(cache_dir), 16
    config.data.tokenizer.vocab_size, config.data.tokenizer.train_bytes = 300, 10_000
    config.data.validation_fraction = 0.1
    config.train.steps, config.train.batch_size, config.train.micro_batch_size = 2, 4, 2
    config.train.eval_windows, config.topology.interval = 2, 1
    config.tracking.probe_windows = min(config.tracking.probe_windows, 2)
    assert run_training(config, tmp_path / "run", Console(quiet=True)) == 0
    events = read_events(tmp_path / "run" / "metrics.jsonl")
    assert [event["step"] for event in events if event["event"] == "train"] == [1, 2]
    moved = [event for event in events if event["event"] == "topology"]
    assert len(moved) == (1 if config.topology.enabled else 0)
