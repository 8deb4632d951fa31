"""A trained model opened from its checkpoint alone: what evaluation, export and generation begin with."""

import logging
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from smet_train import opening
from smet_train.config.plain import from_dict
from smet_train.config.schema import Backend, Config, Family
from smet_train.data.cache import own_cache
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import CheckpointError
from smet_train.sparse import SparseLinear
from smet_train.sparse.backends import BACKENDS, get_backend
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse_model import build_sparse_model
from smet_train.train.checkpoint import load_checkpoint
from smet_train.train.resume import read_found
from smet_train.train.state import restore_model

log = logging.getLogger(__name__)

_NO_NAMES = ("", "..")  # of a path that is typed inside the run folder, such as ".": the run is not among its parents


@dataclass(frozen=True, slots=True)
class Trained:
    """A model as its checkpoint holds it, with what it was trained by.

    Attributes:
        checkpoint: folder of the checkpoint, ``<run folder>/checkpoints/step_XXXXXXXX``.
        step: optimizer steps that were taken.
        config: the settings that the checkpoint was written under.
        model: a ``transformers`` causal language model with :class:`SparseLinear` layers, in evaluation mode.
        densities: target density of each sparse layer, by name.
    """

    checkpoint: Path
    step: int
    config: Config
    model: nn.Module
    tokenizer: TextTokenizer
    densities: dict[str, float]

    @property
    def run_folder(self) -> Path:
        """The folder of the run that the checkpoint is of."""
        return self.checkpoint.parent.parent


def open_trained(path: Path, device: torch.device | str = "cpu", *, backend: str | None = None) -> Trained:
    """The model of a checkpoint, or of the newest good one of a run folder, on ``device`` in the run's precision.

    Args:
        backend: computes the sparse layers in place of the run's own. Where the run's own can't do so on ``device``,
            ``densify`` does, with a warning.

    Raises:
        CheckpointError: as :func:`read_found`; also if the run's tokenizer is gone or is another one.
        ConfigError, BackendError: if its settings can't be built here.
    """
    given = _from_root(path) if path.name in _NO_NAMES else path
    checkpoint, snapshot = read_found(given, lambda found: (found, load_checkpoint(found, only="model")))
    if checkpoint.parent.name in _NO_NAMES:
        checkpoint = _from_root(checkpoint)
    with opening.malformed(str(checkpoint), CheckpointError, "give another one"):
        config = from_dict(snapshot.plain["config"])
        config = replace(config, data=replace(config.data, cache_dir=own_cache(config.data.cache_dir)))
        step = operator.index(snapshot.plain["step"])
        content_hash = str(snapshot.plain["data"]["identity"]["tokenizer"])
        trained_by = {str(layer): str(name) for layer, name in snapshot.plain["backends"].items()}
        saved = snapshot.tensors["model"]
    tokenizer = _tokenizer(checkpoint, content_hash)
    # Built with the backend that can everything; what another can do is asked of the layers as they are.
    built = replace(
        config,
        sparsity=replace(config.sparsity, backend=Backend.densify),
        train=replace(config.train, activation_checkpointing=False),
    )
    _check_size(built, tokenizer, saved, checkpoint)
    model, densities = build_sparse_model(built, tokenizer, torch.device("cpu"))
    for name, layer in sparse_layers(model).items():
        n_active = saved[f"{name}.values"].shape[0] if f"{name}.values" in saved else layer.layout.n_active
        if n_active < layer.layout.n_active:  # gmp begins dense and sheds values
            layer.shrink(torch.arange(layer.layout.n_active) < n_active)
    restore_model(model, saved)
    model = model.to(device).eval()
    for name, layer in sparse_layers(model).items():
        if backend is not None:
            layer.backend = get_backend(backend, layer.layout, layer.values.dtype, layer.values.device)
        else:
            _compute_as_trained(name, layer, trained_by.get(name, ""))
    return Trained(checkpoint, step, config, model, tokenizer, densities)


def _check_size(config: Config, tokenizer: TextTokenizer, saved: Mapping[str, Tensor], checkpoint: Path) -> None:
    """See that a model of ``config`` has no other tensors than ``saved``, by their shapes alone: before there is memory
    for one.

    Raises:
        CheckpointError: if it has.
    """
    if config.model.layers > len(saved) and config.model.family is not Family.auto:
        raise CheckpointError(
            f"{checkpoint} can't be used: model.layers={config.model.layers}, and it holds {len(saved)} tensors; give "
            "another one"
        )
    shaped, _ = build_sparse_model(config, tokenizer, torch.device("meta"))
    index = tuple(f"{name}.{part}" for name in sparse_layers(shaped) for part in ("values", "packed_index"))
    for name, tensor in shaped.named_parameters():
        if name not in index and (name not in saved or saved[name].shape != tensor.shape):
            there = tuple(saved[name].shape) if name in saved else "not there"
            raise CheckpointError(
                f"{checkpoint} can't be used: {name} is {there}, by its settings it is {tuple(tensor.shape)}; give "
                "another one"
            )


def _from_root(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _tokenizer(checkpoint: Path, content_hash: str) -> TextTokenizer:
    path = checkpoint.parent.parent / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and ids mean nothing without it; keep a checkpoint in its run folder, or copy the "
            "run's tokenizer.json and tokenizer_config.json there"
        )
    tokenizer = TextTokenizer.from_file(path)
    if not tokenizer.is_of(content_hash):
        raise CheckpointError(
            f"{path} is not the tokenizer that {checkpoint.name} was trained with; copy the run's own tokenizer.json "
            "and tokenizer_config.json there"
        )
    return tokenizer


def _compute_as_trained(name: str, layer: SparseLinear, trained_by: str) -> None:
    """Give ``layer`` the backend that it was trained with, where that can compute it here."""
    device, dtype = layer.values.device, layer.values.dtype
    reason = BACKENDS[trained_by].unsupported(layer.layout, dtype, device) if trained_by in BACKENDS else "unknown here"
    if reason is None:
        layer.backend = BACKENDS[trained_by]
    else:
        log.warning("layer %s was trained with the backend %s (%s); densify computes it", name, trained_by, reason)
