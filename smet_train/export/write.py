"""One trained model into one new folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smet_train.errors import ConfigError
from smet_train.export.card import model_card
from smet_train.export.dense import value_dtype
from smet_train.export.folder import folder_bytes, new_folder
from smet_train.export.hf import write_hf
from smet_train.export.sparse import write_sparse
from smet_train.export.torch_file import write_torch
from smet_train.sparse.ledger import count_parameters, sparse_layers
from smet_train.train import files
from smet_train.trained import Trained, open_trained

_WRITERS: dict[str, Callable[[Trained, Path], None]] = {"hf": write_hf, "sparse": write_sparse, "torch": write_torch}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: from which checkpoint, the folder's bytes, and those of all parameters if they were dense."""

    checkpoint: Path
    step: int
    bytes: int
    dense_bytes: int


def export(path: Path, format: str, out: Path) -> Exported:
    """Write the model of ``path``, a checkpoint or a run folder, into the new folder ``out``.

    Args:
        format: ``hf``, ``sparse`` or ``torch``.

    Raises:
        CheckpointError: as :func:`smet_train.trained.open_trained`.
        ConfigError: if ``out`` holds something already, or if a dense model is to be written sparsely.
        SmetError: if something can't be written; nothing is left of ``out`` then.
    """
    trained = open_trained(path, backend="densify")
    if format != "hf" and not sparse_layers(trained.model):
        raise ConfigError(f"{path} has no sparse layer (method={trained.config.method}); write --format hf")
    with new_folder(out) as folder:
        _WRITERS[format](trained, folder)
        trained.tokenizer.save(folder, for_others=True)
        files.replace_text(folder / "README.md", model_card(trained, format, out.resolve().name))
    _, parameters = count_parameters(trained.model)
    return Exported(
        trained.checkpoint, trained.step, folder_bytes(out), parameters * value_dtype(trained.model).itemsize
    )
