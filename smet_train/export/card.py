"""The model card: what a run's own records say of its model, and how to load it."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smet_train.config.schema import Config
from smet_train.models import blocks_of
from smet_train.showing import without_secrets
from smet_train.sparse.ledger import count_parameters, sparse_layers
from smet_train.tracking.jsonl import read_events
from smet_train.train.checkpoint import load_plain
from smet_train.trained import Trained

log = logging.getLogger(__name__)

_FORMATS = {
    "hf": (
        "Every matrix is dense here, with zeros where the trained model has no weight. Plain transformers loads it:",
        """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
    ),
    "sparse": (
        "Only active values are stored, beside a coded index of their sites. smet-train loads it as it was trained; "
        "its docs/formats.md has thirty lines that make dense weights of it with torch, safetensors and zlib alone:",
        """\
from smet_train.export import read_sparse
from transformers import AutoTokenizer

model = read_sparse("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
    ),
    "torch": (
        "The sparse matrices are torch's own sparse tensors (CSR, or BSR for blocks) in one file; docs/formats.md of "
        "smet-train shows how to put them into a transformers model:",
        """\
import torch
from transformers import AutoTokenizer

content = torch.load("{folder}/model.pt", weights_only=True)
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
    ),
}


def model_card(trained: Trained, format: str, name: str) -> str:
    """README.md of a folder in ``format`` that will be called ``name``."""
    what, example = _FORMATS[format]
    facts = "\n".join(f"| {key} | {value} |" for key, value in _facts(trained))
    return f"""\
---
library_name: {"transformers" if format == "hf" else "smet-train"}
pipeline_tag: text-generation
license: unknown
tags:
- sparse
- smet-train
---

# {name}

A causal language model, pre-trained by smet-train and written by `smet-export --format {format}`. It
continues text and has learned nothing else: it follows no instructions and refuses nothing.

| | |
|---|---|
{facts}

## How to load it

{what}

```python
{example.format(folder=name)}
```

## License

Not chosen yet: write here, and as `license:` above, under which license the weights may be used.
"""


def _facts(trained: Trained) -> Iterable[tuple[str, str]]:
    config, plain = trained.config, load_plain(trained.checkpoint)
    active, dense = count_parameters(trained.model)
    yield "architecture", _architecture(config, trained.model.config)
    yield "method", f"`{config.method}`, {_moved(config)}"
    yield "density", _density(trained)
    yield "parameters", f"{active:,} active of {dense:,} that the same model has dense ({active / dense:.1%})"
    yield "trained for", f"{trained.step:,} of {config.train.steps:,} steps, {plain['tokens']:,} tokens"
    window = config.data.sequence_tokens
    yield "window", f"{window} tokens; later positions were never trained, so evaluate it with `max_length={window}`"
    token = trained.tokenizer.eos_token.replace("|", r"\|")  # which would end the cell, in code too
    end = f"`{token}` (id {trained.tokenizer.eos_id})"
    yield "beginning of a text", f"{end}, as between documents; put its id before those of a text"
    yield "ids of a text", "those of training: the tokenizer adds none, and takes a special token's name for text"
    yield "precision", f"`{config.train.precision.name}`"
    yield "validation", _validation(trained)
    yield "data", _data(config)
    yield "tokenizer", _tokenizer(config, trained.tokenizer.vocab_size)
    yield "seed", str(config.seed)
    yield "version", f"smet-train {plain['version']}"


def _architecture(config: Config, architecture: Any) -> str:
    model = config.model
    if model.config_file is not None:
        return f"{architecture.model_type}, from a config.json"
    heads = f"{model.heads} heads" + (f" ({model.kv_heads} for keys and values)" if model.kv_heads else "")
    return (
        f"{model.family.name}, {model.layers} layers of width {model.hidden_size}, MLPs of {model.intermediate_size}, "
        f"{heads}" + (", tied embeddings" if model.tie_embeddings else "")
    )


def _moved(config: Config) -> str:
    if not config.sparsity.enabled:
        return "every layer dense"
    if config.topology.grow.name == "nothing":
        return f"pruned while it trained, every {config.topology.interval} steps"
    if not config.topology.enabled:
        return "sparse from the first step, its sites as first drawn"
    return f"sparse from the first step, its sites moved every {config.topology.interval} steps"


def _density(trained: Trained) -> str:
    layers = sparse_layers(trained.model).values()
    if not layers:
        return "1 (dense)"
    active = sum(layer.layout.n_active for layer in layers) / sum(layer.layout.sites for layer in layers)
    block = trained.config.sparsity.block_size
    kind = "single values" if block == 1 else f"blocks of {block}x{block}"
    blocks = blocks_of(trained.model)
    rest = f". {blocks.text[0].upper()}{blocks.text[1:]}" if blocks is not None and blocks.dense else ""
    return f"{active:.4g} of {len(layers)} sparse layers, {kind}; embeddings and all else are dense{rest}"


def _validation(trained: Trained) -> str:
    """The last evaluation up to the checkpoint."""
    path = trained.run_folder / "metrics.jsonl"
    try:
        events = [event for event in read_events(path) if event.get("event") == "eval"]
    except (OSError, ValueError) as error:
        log.warning("the model card has no validation loss: %s", error)
        events = []
    events = [event for event in events if event["step"] <= trained.step]
    if not events:
        return "not recorded"
    last = events[-1]
    return (
        f"loss {float(last['loss']):.4f} nats a token, perplexity {float(last['perplexity']):.4g}, over "
        f"{last['tokens']:,} tokens that were held out, after step {last['step']:,}"
    )


def _data(config: Config) -> str:
    data = config.data
    if data.source.name == "hub":
        return f"`{'/'.join(part for part in (data.name, data.subset, data.split) if part)}` from the Hugging Face hub"
    if data.source.name == "python_source":
        return "the Python source files of an interpreter's standard library"
    # A published card does not tell where on its author's machine the files were.
    names = ", ".join(f"`{without_secrets(file) if '://' in file else Path(file).name}`" for file in data.files)
    return f"{data.source.name} files: {names}"


def _tokenizer(config: Config, vocab_size: int) -> str:
    tokenizer = config.data.tokenizer
    if tokenizer.hub_name is not None:
        return f"`{tokenizer.hub_name}` from the Hugging Face hub, {vocab_size:,} tokens"
    if tokenizer.file is not None:
        return f"`{Path(tokenizer.file).name}`, {vocab_size:,} tokens"
    return f"byte-level BPE of {vocab_size:,} tokens, trained on the data"
