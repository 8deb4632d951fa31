"""Tiny configurations of transformers' causal architectures, and what becomes of each in a run.

``python -m tests.faults.architectures docs/architectures.md`` tries all of them and writes the table of the page.
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from smet_train.build_data import build_data
from smet_train.config.compose import compose
from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.export import read_sparse
from smet_train.export.write import export
from smet_train.job import run_training
from smet_train.tracking.jsonl import read_events
from smet_train.train.evaluate import mean_loss
from smet_train.trained import open_trained
from tests.faults.trials import difference
from tests.forked import unpredicted

Settings = dict[str, Any]
DENSITY = 0.25  # asked for in every trial
SETTINGS = [
    "+debug=quick",
    "data=text",
    "data.text_unit=line",
    "data.shuffle_documents=50",
    "data.validation_fraction=0.1",
    f"sparsity.density={DENSITY}",
    "model=auto",
]
BEGIN, END = "<!-- written by tests/faults/architectures.py -->", "<!-- end of the table -->"
HEAD = "| architecture | trains | resumes | exports | density of its blocks | what of them stays dense |"

_NAMES = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_SHAPE: Settings = {"hidden_size": 32, "intermediate_size": 48, **_NAMES}
_GQA: Settings = {**_SHAPE, "num_key_value_heads": 2}
_HEADS: Settings = {**_GQA, "head_dim": 8}
_GPT: Settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_EXPERTS: Settings = {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
_FINE: Settings = {**_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_FINE["shared_expert_intermediate_size"] = 24

FAMILIES: dict[str, dict[str, Settings]] = {
    "Like LLaMA": {
        **dict.fromkeys(("llama", "mistral", "qwen2", "phi", "phi3", "olmo", "olmo2", "stablelm", "starcoder2"), _GQA),
        **dict.fromkeys(("cohere", "granite", "smollm3", "nemotron"), _GQA),
        **dict.fromkeys(("qwen3", "gemma", "gemma2", "gemma3_text", "glm4"), _HEADS),
    },
    "Like GPT": {
        "gpt2": _GPT,
        "gpt_bigcode": _GPT,
        "gptj": {**_GPT, "rotary_dim": 4},
        "gpt_neo": {
            "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4,
            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
        },
        "gpt_neox": _SHAPE,
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "hidden_size": 32, **_NAMES},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48},
        "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
        "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64},
    },
    "Mixtures of experts": {
        **dict.fromkeys(("mixtral", "granitemoe"), _EXPERTS),
        "phimoe": {**_EXPERTS, "output_router_logits": False},
        "gpt_oss": {**_EXPERTS, "head_dim": 8, "sliding_window": 16},
        "olmoe": {**_GQA, "num_experts": 4, "num_experts_per_tok": 2},
        "qwen2_moe": _FINE,
        "qwen3_moe": _FINE,
        "deepseek_v3": {
            **_GQA, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_shared_experts": 1,
        },
    },
    "State spaces, recurrence and hybrids": {
        "mamba": {
            "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "intermediate_size": 64, "time_step_rank": 2,
        },
        "mamba2": {
            "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2,
            "chunk_size": 8,
        },
        "rwkv": {
            "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "context_length": 64, "rescale_every": 0,
        },
        "recurrent_gemma": {
            **_GQA, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16, "head_dim": 8,
        },
        "jamba": {
            **_GQA, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 2,
            "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        "qwen3_next": {
            **_FINE, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        },
    },
    "Text models of what reads more": {
        "gemma3": {
            "text_config": {**_HEADS, "vocab_size": 500},
            "vision_config": {**_SHAPE, "image_size": 28, "patch_size": 14},
        },
    },
    "Encoders, which look ahead unless they are told not to": {
        "bert": _SHAPE, "electra": {**_SHAPE, "embedding_size": 32}, "roberta": _SHAPE,
        "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    },
}  # fmt: skip
CONFIGS = {name: settings for family in FAMILIES.values() for name, settings in family.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """What became of an architecture: why it was refused, or the density of its blocks and what of them is dense."""

    name: str
    refused: str | None = None
    density: float = 0.0
    dense: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.refused is not None:
            return f"| `{self.name}` | no: {self.refused} | | | | |"
        dense = ", ".join(f"`{name}`" for name in self.dense)
        return f"| `{self.name}` | yes | yes | yes | {self.density:.4f} | {dense} |"


class Failed(Exception):
    """An architecture is neither refused nor trained as it should be."""


def attempt(name: str, corpus: Path, folder: Path) -> Row:
    """Train, resume, evaluate, export and load ``name`` again, in ``folder``.

    Raises:
        Failed: if it trains, but one of these is not as it should be, or if its density is not told.
    """
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps({"model_type": name, **CONFIGS[name]}), encoding="utf-8")
    data = [f"data.files=['{corpus}']", f"data.cache_dir='{folder.parent / 'cache'}'", f"model.config_file='{file}'"]
    config = compose([*SETTINGS, *data])
    whole, printed = folder / "whole", Console(width=500, record=True, file=io.StringIO())
    with _quiet():
        try:
            run_training(config, whole, printed)
        except ConfigError as error:
            return Row(name, refused=str(error).removeprefix(f"model.config_file={file}: "))
        _resumed(config, whole, folder / "resumed")
        return Row(name, None, *_exported(config, whole, folder, printed.export_text()))


def _resumed(config: Config, whole: Path, folder: Path) -> None:
    """Go on from the checkpoint of step 3, and compare with the run that was not interrupted."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    run_training(config, folder, Console(quiet=True))
    different = difference(folder, whole, 6)
    if different is not None:
        raise Failed(f"resumed: {different}")


def _exported(config: Config, whole: Path, folder: Path, printed: str) -> tuple[float, tuple[str, ...]]:
    """Evaluate, export and load again; returns what was told of the density."""
    trained = open_trained(whole)
    with closing(build_data(config, whole / "tokenizer.json")) as data:
        windows = data.validation
    events = read_events(whole / "metrics.jsonl")
    recorded = [event["loss"] for event in events if event["event"] == "eval"][-1]
    loss = mean_loss(trained.model, windows[: config.train.eval_windows], 2, config.train.precision.name)
    if abs(loss - recorded) > 1e-6 * recorded:
        raise Failed(f"evaluated: a loss of {loss}, and {recorded} in the run")
    export(whole, "hf", folder / "hf")
    export(whole, "sparse", folder / "sparse")
    dense = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    expected = _logits(trained.model, windows)
    for kind, model in (("hf", dense), ("sparse", read_sparse(folder / "sparse"))):
        if not _logits(model, windows).equal(expected):
            raise Failed(f"exported as {kind}: the logits differ")
    run = next(event for event in events if event["event"] == "run")
    density, names = run["block_density"], run["dense_in_blocks"]
    _check_told(density, names, dense, printed)
    return density, tuple(dict.fromkeys(text.rpartition(" (")[0] for text in names))


def _check_told(density: float, names: list[str], dense: PreTrainedModel, printed: str) -> None:
    """See that the density that was told is that of the matrices as they are loaded again, by counting their zeros."""
    ends = {id(module.weight) for module in (dense.get_input_embeddings(), dense.get_output_embeddings()) if module}
    ends |= {id(module.weight) for module in dense.modules() if isinstance(module, nn.Embedding)}
    matrices = [weight for weight in dense.parameters() if weight.dim() > 1 and id(weight) not in ends]
    held = sum(int(weight.count_nonzero()) for weight in matrices) / sum(weight.numel() for weight in matrices)
    # Values of experts that no token has reached, or behind a unit that is never active, may be 0 after they grew.
    if not density - 0.02 <= held <= density + 1e-9:
        raise Failed(f"told a density of {density}, but {held} of the weights are not 0")
    warned = any(
        line.startswith("warning     ") and f" is {density:.4g}, not " in line for line in printed.splitlines()
    )
    if warned != bool(names) or (not names and abs(density - DENSITY) > 0.01):
        raise Failed(f"a density of {density} is silent; dense are {names}")


@torch.no_grad()
def _logits(model: nn.Module, windows: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=windows[:2, :-1], use_cache=False).logits
    return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice on kernels that are not installed."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)


def table(row_of: Callable[[str], str]) -> str:
    """The page's table, a part for each family, of the row of each architecture."""
    parts = []
    for family, configs in FAMILIES.items():
        rows = "\n".join(row_of(name) for name in configs)
        parts.append(f"### {family}\n\n{HEAD}\n{'|---' * HEAD.count(' | ')}|---|\n{rows}\n")
    return "\n".join(parts)


def documented(page: str) -> dict[str, str]:
    """The rows of the page, by the architectures' names."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def main(page: Path) -> None:
    """Try all, and write the table into ``page``."""
    from tests.conftest import make_documents

    unpredicted()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(make_documents(400)), encoding="utf-8")

        def row_of(name: str) -> str:
            row = str(attempt(name, corpus, Path(folder) / name))
            print(row, flush=True)
            return row

        made = table(row_of)
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
