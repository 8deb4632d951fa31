"""The model of a configuration: its architecture, its sparse layers, and what computes them."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from smet_train.config.densities import parse_densities
from smet_train.config.init_source import source_tokenizer
from smet_train.config.schema import Config
from smet_train.data.cache import default_cache_dir
from smet_train.data.tokenizer import load_tokenizer
from smet_train.models import (
    ModelSpec,
    Pretrained,
    blocks_of,
    build_model,
    checkpoint_activations,
    default_projections,
    left_out,
    refuse_other_parameters,
    router_remark,
)
from smet_train.sparse import Layout, SparseLinear, sparsify
from smet_train.sparse.allocation import Shapes, allocate
from smet_train.sparse.backends import BACKENDS, get_backend
from smet_train.sparse.backends.auto import Choice, choose_backend
from smet_train.sparse.convert import ChooseSites, named_layout
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse.pruning import inherited_sites, largest_sites
from smet_train.sparse.sampling import stream_key
from smet_train.train.precision import hold_parameters

log = logging.getLogger(__name__)

Backends = Mapping[str, str]  # the backend of each sparse layer, by their names


class Vocabulary(Protocol):
    """What a model needs to know of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""

    @property
    def eos_id(self) -> int:
        """The id of the end-of-text token."""


@dataclass(frozen=True, slots=True)
class _PlannedVocabulary:
    vocab_size: int
    eos_id: int = 0


def model_spec(config: Config) -> ModelSpec:
    """What the settings say of the architecture."""
    return ModelSpec(
        family=config.model.family.name,
        hidden_size=config.model.hidden_size,
        intermediate_size=config.model.intermediate_size,
        layers=config.model.layers,
        heads=config.model.heads,
        kv_heads=config.model.kv_heads,
        dropout=config.model.dropout,
        tie_embeddings=config.model.tie_embeddings,
        initializer_range=config.model.initializer_range,
        config_file=config.model.config_file,
    )


def named_tokenizer(config: Config) -> tuple[str | None, str | None]:
    """(file, name on the hub) of the tokenizer that the settings name: its own, or that of ``model.init_from``."""
    file, hub_name = config.data.tokenizer.file, config.data.tokenizer.hub_name
    if file is None and hub_name is None and config.model.init_from is not None:
        beside = source_tokenizer(Path(config.model.init_from))
        return None if beside is None else str(beside), None
    return file, hub_name


def cache_dir(config: Config) -> Path:
    """Folder of what is derived once: tokenizers, validation windows, timings."""
    return default_cache_dir() if config.data.cache_dir is None else Path(config.data.cache_dir).expanduser()


def planned_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary of the tokenizer that ``config`` names, or the size of the one that will be trained."""
    named = load_tokenizer(*named_tokenizer(config))
    return named or _PlannedVocabulary(config.data.tokenizer.vocab_size)


def build_sparse_model(
    config: Config,
    tokenizer: Vocabulary,
    device: torch.device,
    backends: Backends | None = None,
    pretrained: Pretrained | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """The model on its device, in its precision, and the target density of each sparse layer (none if dense).

    On the meta device its tensors hold no numbers: enough to plan with.

    Args:
        backends: with ``sparsity.backend=auto`` those that a checkpoint was computed with: its run goes on with them,
            whatever would be chosen today.
        pretrained: weights to begin from in place of random ones; ``model.init_from`` is read by those who open them.
    """
    spec = model_spec(config)
    with torch.device("meta") if device.type == "meta" else nullcontext():
        model = build_model(
            spec,
            vocab_size=tokenizer.vocab_size,
            sequence_tokens=config.data.sequence_tokens,
            eos_id=tokenizer.eos_id,
            seed=config.seed,
        )
    if pretrained is not None:
        pretrained.fill(model)
    densities: dict[str, float] = {}

    def allocate_and_note(shapes: Shapes, density: float) -> dict[str, float]:
        by_pattern = parse_densities(config.sparsity.densities)
        densities.update(allocate(shapes, density, config.sparsity.allocation.name, by_pattern))
        if config.topology.grow.name != "nothing":
            return densities
        for name, shape in shapes.items():  # what pruning ends at must exist, before hours are spent on getting there
            named_layout(name, shape, densities[name], config.sparsity.block_size)
        return dict.fromkeys(densities, 1.0)

    def choose(name: str, layout: Layout) -> str:
        kept = _kept(config, name, layout, device, backends or {})
        return choose_for(config, layout, device).backend if kept is None else kept

    named_backend = config.sparsity.backend.name
    if config.sparsity.enabled:
        refuse_other_parameters(model, config.sparsity.include or (), "sparsity.include")
        refuse_other_parameters(model, config.sparsity.exclude, "sparsity.exclude")
        sparsify(
            model,
            config.sparsity.include or default_projections(spec.family, model),
            config.sparsity.exclude,
            density=config.sparsity.density,
            seed=config.seed,
            block=config.sparsity.block_size,
            backend=choose if named_backend == "auto" else named_backend,
            init=config.sparsity.init.name if pretrained is None else "dense",
            allocate=allocate_and_note,
            choose_sites=None if pretrained is None else choose_trained_sites(pretrained, config.seed),
        )
    hold_parameters(model, config.train.precision.name)
    if config.train.activation_checkpointing:
        checkpoint_activations(model)
    model = model.to(device).train()
    for layer in sparse_layers(model).values():  # a backend that computes on the CPU may not do so on a GPU
        get_backend(layer.backend.name, layer.layout, layer.values.dtype, device)
    return model, densities


def pruned_to(config: Config, densities: Mapping[str, float]) -> Mapping[str, float] | None:
    """The densities that sparse layers come to, by name; None where they have them from the beginning."""
    return densities if config.topology.grow.name == "nothing" else None


def model_remarks(config: Config, model: nn.Module, densities: Mapping[str, float]) -> list[str]:
    """What to know of a model of :func:`build_sparse_model`: what is left out of its file, which loss its routers have,
    and what of its blocks stays dense."""
    lines = [*left_out(model_spec(config)), router_remark(model)]
    blocks = blocks_of(model, pruned_to(config, densities))
    if blocks is not None and blocks.dense:
        lines.append(f"warning     {blocks.text}")
    return [line for line in lines if line is not None]


def choose_trained_sites(pretrained: Pretrained, seed: int) -> ChooseSites:
    """First sites by the magnitude of trained weights; a layer that was sparse keeps what its density lets it."""

    def choose(name: str, layout: Layout, weight: Tensor) -> Tensor:
        if name not in pretrained.sparse:
            return largest_sites(weight, layout)
        source, sites_S = pretrained.sites(name, (layout.out_features, layout.in_features))
        return inherited_sites(weight, layout, sites_S, source, stream_key(seed, name, 0, "added sites"))

    return choose


def _computing(config: Config, device: torch.device) -> tuple[torch.device, torch.dtype]:
    """Where and in what the products will be computed; for the meta device of a plan, as in the run itself."""
    if device.type == "meta":
        on_gpu = config.train.device.name != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
    return device, torch.float32 if config.train.precision.name == "fp32" else torch.bfloat16


def _kept(config: Config, name: str, layout: Layout, device: torch.device, backends: Backends) -> str | None:
    """The backend that a checkpoint names for layer ``name``; None if there is none, or if it can't compute it here."""
    kept = backends.get(name)
    if kept is None:
        return None
    real_device, dtype = _computing(config, device)
    reason = BACKENDS[kept].unsupported(layout, dtype, real_device) if kept in BACKENDS else "it is unknown here"
    if reason is not None and device.type != "meta":
        log.warning(
            "layer %s was computed by the backend %s, which can't do so on %s: %s; another one is chosen, whose "
            "rounding differs",
            *(name, kept, real_device, reason),
        )
    return kept if reason is None else None


def choose_for(config: Config, layout: Layout, device: torch.device) -> Choice:
    """What ``sparsity.backend=auto`` takes for layers of ``layout``: timed once, then from the user's cache."""
    device, dtype = _computing(config, device)
    tokens = config.train.micro_batch_size * config.data.sequence_tokens
    return choose_backend(layout, dtype, device, tokens, cache_dir(config) / "backends.json")


def explain_backends(
    config: Config, layers: Mapping[str, SparseLinear], device: torch.device, backends: Backends | None = None
) -> list[str]:
    """Why ``auto`` has chosen what it has, a line for each kind of layer; none if the backend was named.

    ``backends`` as for :func:`build_sparse_model`.
    """
    if config.sparsity.backend.name != "auto":
        return []
    reasons: dict[tuple[Layout, str], str] = {}
    for name, layer in layers.items():
        kind = layer.layout, layer.backend.name
        if kind not in reasons:
            kept = (backends or {}).get(name) == layer.backend.name
            reasons[kind] = "as in the checkpoint" if kept else choose_for(config, layer.layout, device).text
    return [
        f"backend     {layout.shape_text} at density {layout.density:.4g}: {backend} ({reason})"
        for (layout, backend), reason in reasons.items()
    ]
