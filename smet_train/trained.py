"""A trained model opened from its checkpoint alone: what evaluation, export and generation begin with."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from smet_train.config.plain import from_dict
from smet_train.config.schema import Backend, Config
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import CheckpointError
from smet_train.sparse import SparseLinear
from smet_train.sparse.backends import BACKENDS, get_backend
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse_model import build_sparse_model
from smet_train.train.checkpoint import load_checkpoint, require_checkpoint, what_is_wrong
from smet_train.train.resume import newest_good
from smet_train.train.state import restore_model

log = logging.getLogger(__name__)


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


def find_trained(path: Path) -> Path:
    """The checkpoint that ``path`` is, or the newest good one of the run folder that it is; nothing is renamed.

    Raises:
        CheckpointError: if there is none, or the one that is named is damaged; the message says which file.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a run folder, or a checkpoint such as <run folder>/checkpoints/step_00000500"
        )
    for folder in (path / "checkpoints", path):
        newest = newest_good(folder, check_all=False, own=False)
        if newest is not None:
            return newest
    if (path / "config.yaml").is_file():
        raise CheckpointError(f"{path} is a run folder without a checkpoint yet; let it train until it has saved one")
    require_checkpoint(path)
    reason = what_is_wrong(path)
    if reason is not None:
        raise CheckpointError(f"{path} can't be used: {reason}; give another checkpoint", exit_status=1)
    return path


def open_trained(path: Path, device: torch.device | str = "cpu", *, backend: str | None = None) -> Trained:
    """The model of a checkpoint, or of the newest good one of a run folder, on ``device`` in the run's precision.

    Args:
        backend: computes the sparse layers in place of the run's own. Where the run's own can't do so on ``device``,
            ``densify`` does, with a warning.

    Raises:
        CheckpointError: as :func:`find_trained`; also if the run's tokenizer is gone or is another one's.
        ConfigError, BackendError: if its settings can't be built here.
    """
    checkpoint = find_trained(path)
    snapshot = load_checkpoint(checkpoint)
    config = from_dict(snapshot.plain["config"])
    tokenizer = _tokenizer(checkpoint)
    # Built with the backend that can everything; what another can do is asked of the layers as they are.
    built = replace(
        config,
        sparsity=replace(config.sparsity, backend=Backend.densify),
        train=replace(config.train, activation_checkpointing=False),
    )
    model, densities = build_sparse_model(built, tokenizer, torch.device("cpu"))
    saved = snapshot.tensors["model"]
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
            _compute_as_trained(name, layer, snapshot.plain["backends"][name])
    return Trained(checkpoint, int(snapshot.plain["step"]), config, model, tokenizer, densities)


def _tokenizer(checkpoint: Path) -> TextTokenizer:
    path = checkpoint.parent.parent / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and ids mean nothing without it; keep a checkpoint in its run folder, or copy the "
            "run's tokenizer.json and tokenizer_config.json there"
        )
    return TextTokenizer.from_file(path)


def _compute_as_trained(name: str, layer: SparseLinear, trained_by: str) -> None:
    """Give ``layer`` the backend that it was trained with, where that can compute it here."""
    device, dtype = layer.values.device, layer.values.dtype
    reason = BACKENDS[trained_by].unsupported(layer.layout, dtype, device) if trained_by in BACKENDS else "unknown here"
    if reason is None:
        layer.backend = BACKENDS[trained_by]
    else:
        log.warning("layer %s was trained with the backend %s (%s); densify computes it", name, trained_by, reason)
