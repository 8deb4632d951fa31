"""Models of experts: what of them stays dense is told, their routers' loss is transformers', a plan can be made."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, JetMoeConfig, Llama4TextConfig, MixtralConfig, PreTrainedModel

from smet_train.analysis import planning
from smet_train.analysis.planning import Unpredictable, plan_run
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.export.write import export
from smet_train.job import predict, run_training
from smet_train.models import blocks_of
from smet_train.models.router import router_remark
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse_model import build_sparse_model, model_remarks
from smet_train.tracking.jsonl import read_events
from smet_train.train.step import token_loss

Configure = Callable[..., Config]
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


class Words:
    vocab_size = 300
    eos_id = 0


def mixtral(**settings: Any) -> MixtralConfig:
    return MixtralConfig(**SHAPE, num_attention_heads=4, **settings)


def by_file(config: Any, folder: Path) -> list[str]:
    config.save_pretrained(folder)
    return ["model=auto", f"model.config_file={folder}/config.json"]


def model_of(config: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def test_a_run_tells_what_stays_dense_and_the_true_density(quick_config: Configure, tmp_path: Path) -> None:
    console = Console(width=500, record=True, file=io.StringIO())
    config = quick_config(*by_file(mixtral(), tmp_path), "sparsity.density=0.1", "method=static")
    assert run_training(config, tmp_path / "run", console) == 0
    printed = console.export_text()
    # a layer: q and o of 32x32, k and v of 16x32; two of experts; the router of 4x32
    linear, dense = 2 * (2 * 32 * 32 + 2 * 16 * 32), 2 * (4 * 96 * 32 + 4 * 32 * 48 + 4 * 32)
    [run] = [event for event in read_events(tmp_path / "run" / "metrics.jsonl") if event["event"] == "run"]
    active = sum(round(0.1 * rows * 32) for rows in (32, 32, 16, 16) * 2)
    assert run["block_density"] == pytest.approx((active + dense) / (linear + dense), abs=1e-12)
    names = ["gate_up_proj (2 of 4x96x32)", "down_proj (2 of 4x32x48)"]
    gate = "model.layers.*.mlp.gate.weight (2 of 4x32)"
    assert sorted(run["dense_in_blocks"]) == sorted([gate, *(f"model.layers.*.mlp.experts.{name}" for name in names)])
    density = f"the density of all matrices of the blocks is {run['block_density']:.4g}, not {active / linear:.4g}"
    [line] = [line for line in printed.splitlines() if line.startswith("warning     ")]
    assert density in line
    assert all(name in line for name in run["dense_in_blocks"])
    assert "router_aux_loss_coef=0.001 is not added to the loss" in printed
    export(tmp_path / "run", "sparse", tmp_path / "out")
    assert density in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_told_where_all_matrices_are_sparse(quick_config: Configure) -> None:
    for overrides in (["sparsity.density=0.1"], ["model.family=gpt2"], ["method=dense"], ["sparsity.block_size=8"]):
        config = quick_config(*overrides)
        model, densities = build_sparse_model(config, Words(), torch.device("cpu"))
        assert model_remarks(config, model, densities) == []
        blocks = blocks_of(model)
        assert blocks is None or (blocks.dense == () and blocks.density == blocks.sparse_density)


def test_layers_that_were_left_out_count_and_pruning_counts_by_its_end(quick_config: Configure) -> None:
    config = quick_config("method=gmp", "sparsity.density=0.25", "sparsity.exclude=['*.down_proj']")
    model, densities = build_sparse_model(config, Words(), torch.device("cpu"))
    [line] = model_remarks(config, model, densities)
    sites = sum(layer.layout.weights for layer in sparse_layers(model).values())
    dense = 2 * 64 * 128
    assert "model.layers.*.mlp.down_proj.weight (2 of 64x128) stay dense" in line
    assert f"is {(0.25 * sites + dense) / (sites + dense):.4g}, not 0.25" in line


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("*.experts", "model.layers.0.mlp.experts.gate_up_proj, one parameter of 4x96x32"),
        ("*.experts.down_proj", "model.layers.0.mlp.experts.down_proj, one parameter of 4x32x48"),
        ("*.mlp.gate", "model.layers.0.mlp.gate.weight, one parameter of 4x32"),
        ("*.embed_tokens", "model.embed_tokens.weight, one parameter of 300x32"),
    ],
)
def test_a_pattern_that_names_experts_is_told_why_not(
    pattern: str, named: str, quick_config: Configure, tmp_path: Path
) -> None:
    auto = by_file(mixtral(), tmp_path)
    for key in ("include", "exclude"):
        config = quick_config(*auto, f"sparsity.{key}=['*.q_proj','{pattern}']")
        with pytest.raises(ConfigError, match=rf"sparsity.{key}: the pattern '.*' names {named}, and only the weights"):
            build_sparse_model(config, Words(), torch.device("cpu"))
    with pytest.raises(ConfigError, match="matches none of the 9 linear layers"):
        build_sparse_model(quick_config(*auto, "sparsity.include=['*.up']"), Words(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "coefficient"),
    [
        (mixtral(output_router_logits=True, router_aux_loss_coef=0.3, vocab_size=300), "router_aux_loss_coef=0.3"),
        (mixtral(router_aux_loss_coef=0.3, vocab_size=300), None),
        (JetMoeConfig(**SHAPE, kv_channels=8, output_router_logits=True, vocab_size=300), "aux_loss_coef=0.01"),
    ],
)
def test_the_loss_of_training_is_the_one_of_transformers(config: Any, coefficient: str | None) -> None:
    model = model_of(config)
    windows = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    ours = token_loss(model.train(), windows, "fp32")
    targets = windows[:, 1:].contiguous()
    theirs = model(input_ids=windows[:, :-1], labels=targets, shift_labels=targets)
    torch.testing.assert_close(ours, theirs.loss)
    evaluated = token_loss(model.eval(), windows, "fp32")
    assert (float(ours.detach() - evaluated.detach()) > 1e-3) == (coefficient is not None)
    told = router_remark(model)
    if coefficient is None:
        assert told is not None
        assert told.endswith('write "output_router_logits": true into the config.json to add it')
    else:
        assert told == f"router      {coefficient} times the routers' loss is added to the loss of training"


def test_a_coefficient_of_zero_and_one_that_nothing_reads() -> None:
    assert router_remark(model_of(mixtral(router_aux_loss_coef=0.0))) is None
    with torch.device("meta"):
        llama4 = model_of(Llama4TextConfig(**SHAPE, num_attention_heads=4, head_dim=8, router_aux_loss_coef=0.1))
    assert router_remark(llama4) == (
        "router      router_aux_loss_coef=0.1 is not read by transformers' Llama4ForCausalLM"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16"])
def test_a_plan_counts_the_experts_that_a_token_goes_to(
    precision: str, quick_config: Configure, tmp_path: Path
) -> None:
    def plan(**settings: Any) -> planning.Plan:
        auto = by_file(mixtral(**settings), tmp_path)
        size = ["train.batch_size=2", "train.micro_batch_size=2", f"train.precision={precision}", "method=dense"]
        return plan_run(quick_config(*auto, *size), vocabulary=Words())

    one, more = plan(), plan(hidden_act="gelu")
    assert one.footprint.flops == more.footprint.flops
    tokens, experts = 2 * 32, 2 * 2 * (96 * 32 + 32 * 48)
    rest = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 4 * 32) + 32 * 300
    attention = one.footprint.flops - 3 * 2 * tokens * (experts + rest)
    # of queries with keys and of their weights with values: twice forward, five times backward
    assert 0 < attention <= 2 * 7 * 2 * 2 * 4 * 32 * 32 * 8


def test_what_can_not_be_planned_is_one_message_and_no_traceback(
    quick_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = quick_config(*by_file(mixtral(), tmp_path))
    monkeypatch.setattr("smet_train.analysis.footprint._SHAPES", {})
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(
            Unpredictable,
            match=r"can't be predicted, .* MixtralForCausalLM computes depends on numbers \(.+\); smet-train",
        ),
    ):
        plan_run(config, vocabulary=Words())
    assert not [record for record in caplog.records if "fake" in record.name]
    with caplog.at_level(logging.INFO):
        assert predict(config, Words(), {}) == ({}, None)
    assert "memory and operations can't be predicted" in caplog.text
