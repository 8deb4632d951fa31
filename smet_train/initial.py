"""The trained weights that ``model.init_from`` names, opened: their tensors are read later, one at a time."""

from pathlib import Path
from typing import Any

from torch import Tensor

from smet_train import opening
from smet_train.config.fields import spell
from smet_train.config.init_source import SourceKind, check_source, source_kind
from smet_train.config.plain import from_dict, plain
from smet_train.config.schema import Config, Family, ModelConfig
from smet_train.errors import CheckpointError, ConfigError, LayoutError
from smet_train.models import Pretrained, transformers_config
from smet_train.models.architecture import settings_of, without_code
from smet_train.models.config_file import is_quantized, read_architecture
from smet_train.models.pretrained import ReadIndex
from smet_train.models.sparse_folder import ARCHITECTURE, read_description
from smet_train.models.stored import StoredTensors, damaged, stored_tensors
from smet_train.sparse import Layout
from smet_train.sparse.index import packed_like, unpack
from smet_train.sparse.index_coding import decode_sites
from smet_train.sparse_model import model_spec
from smet_train.train.checkpoint import load_plain
from smet_train.train.resume import read_found
from smet_train.train.stored_model import stored_model

_SHAPES = (
    "family",
    "config_file",
    "hidden_size",
    "intermediate_size",
    "layers",
    "heads",
    "kv_heads",
    "tie_embeddings",
)
_PACKED = ".packed_index"


def open_pretrained(config: Config) -> Pretrained:
    """The weights that ``model.init_from`` names, for a run of ``config``.

    Raises:
        ConfigError: if they can't be used, or have no tokenizer; the message says what to write instead.
    """
    assert config.model.init_from is not None
    check_source(config)
    folder = Path(config.model.init_from).expanduser()
    return _OPENED[source_kind(folder)](folder, config)


def _from_huggingface(folder: Path, config: Config) -> Pretrained:
    return _described(folder, folder / "config.json", config, {}, _read_packed)


def _from_sparse(folder: Path, config: Config) -> Pretrained:
    try:
        layers = read_description(folder).layers
    except CheckpointError as error:
        raise ConfigError(f"model.init_from: {error}", exit_status=error.exit_status) from error
    return _described(folder, folder / ARCHITECTURE, config, {name: f"{name}.index" for name in layers}, _read_coded)


def _described(
    folder: Path, config_file: Path, config: Config, sparse: dict[str, str], read_index: ReadIndex
) -> Pretrained:
    """The weights of a folder that holds a transformers configuration in ``config_file``."""
    architecture = _from_json(config_file)
    settings = None if config.model.family is Family.auto else settings_of(architecture)
    return Pretrained(
        name=str(folder),
        tensors=stored_tensors(folder),
        config=architecture,
        remedy=_remedy(settings or {"family": "auto", "config_file": str(config_file)}, config.model),
        sparse=sparse,
        read_index=read_index,
    )


def _from_json(path: Path) -> Any:
    """The transformers configuration in ``path``; code that a folder may bring along is never run."""
    try:
        settings = without_code(opening.read_object(path), str(path))
        architecture = read_architecture(settings).config
    except Exception as error:
        # Every architecture checks its settings in its own way, with its own exception types.
        raise damaged(path, error) from error
    if is_quantized(settings):
        raise ConfigError(
            f"model.init_from: {path} has a quantization_config, so that the numbers beside it are codes and not "
            "weights; give the folder of the model before it was quantized"
        )
    return architecture


def _from_run(folder: Path, config: Config) -> Pretrained:
    def read(found: Path) -> tuple[Path, Config, StoredTensors]:
        plain_values = load_plain(found)
        with opening.malformed(str(found), CheckpointError, "give another one"):
            return found, from_dict(plain_values["config"]), stored_model(found)

    try:
        checkpoint, saved, tensors = read_found(folder, read)
    except CheckpointError as error:
        raise ConfigError(f"model.init_from: {error}", exit_status=error.exit_status) from error
    return Pretrained(
        name=str(checkpoint),
        tensors=tensors,
        config=_architecture(saved),
        remedy=_remedy({key: plain(getattr(saved.model, key)) for key in _SHAPES}, config.model),
        sparse={name.removesuffix(_PACKED): name for name in tensors.names if name.endswith(_PACKED)},
        read_index=_read_packed,
    )


def _architecture(config: Config) -> Any:
    """The transformers configuration of a run; None if it was built from a file that is gone."""
    try:
        return transformers_config(
            model_spec(config), vocab_size=1, sequence_tokens=config.data.sequence_tokens, eos_id=0
        )
    except ConfigError:
        return None


def _read_packed(tensors: StoredTensors, name: str, layout: Layout) -> Tensor:
    packed, like = tensors.read(name), packed_like(layout)
    if packed.shape != like.shape or packed.dtype != like.dtype:
        raise LayoutError(f"{name} holds {tuple(packed.shape)} of {packed.dtype}, not {tuple(like.shape)}")
    return unpack(packed, layout)


def _read_coded(tensors: StoredTensors, name: str, layout: Layout) -> Tensor:
    return decode_sites(tensors.read(name), layout)


def _remedy(settings: dict[str, Any], model: ModelConfig) -> str:
    """What to write so that a model is built as ``settings`` say."""
    here = {key: plain(getattr(model, key)) for key in settings}
    if "kv_heads" in here:
        here["kv_heads"] = here["kv_heads"] or here["heads"]
        settings = settings | {"kv_heads": settings["kv_heads"] or settings["heads"]}
    other = {key: value for key, value in settings.items() if value != here[key]}
    if settings["family"] == "auto" and other:
        return f"write model=auto model.config_file={settings['config_file']} and no other setting of the model's shape"
    if not other and settings["family"] == "gpt2":
        return (
            "the settings model.* are those of the weights, but gpt2 has max(1024, data.sequence_tokens) positions; "
            "write data.sequence_tokens= as they were trained with"
        )
    if not other:
        return "the settings model.* are those of the weights, so it is the folder that is not as it should be"
    return "write " + " ".join(f"model.{key}={spell(value)}" for key, value in other.items())


_OPENED = {SourceKind.huggingface: _from_huggingface, SourceKind.run: _from_run, SourceKind.sparse: _from_sparse}
