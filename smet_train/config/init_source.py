"""What kind of folder ``model.init_from`` names, and where its tokenizer lies: without what reads the weights."""

from enum import Enum
from pathlib import Path

from smet_train.config.schema import Config
from smet_train.errors import ConfigError


class SourceKind(Enum):
    huggingface = "Hugging Face folder"
    run = "run folder or checkpoint of smet-train"
    sparse = "sparse folder of smet-export"


_TENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ALLOWED = (
    "give a folder with config.json and model.safetensors, a run folder, a checkpoint such as <run "
    "folder>/checkpoints/step_00000500, or a folder that smet-export --format sparse wrote"
)


def source_kind(folder: Path) -> SourceKind:
    """What ``folder`` is, by the names of its files.

    Raises:
        ConfigError: if it is nothing that a run can begin from.
    """
    key = f"model.init_from={folder}"
    folder = folder.expanduser()
    if not folder.exists():
        raise ConfigError(f"{key} does not exist; {_ALLOWED}")
    if not folder.is_dir():
        raise ConfigError(f"{key} is a file; {_ALLOWED}")
    names = {path.name for path in folder.iterdir()}
    if "sparse.json" in names:
        return SourceKind.sparse
    if names & {"manifest.json", "state.json", "checkpoints"} or any(name.startswith("step_") for name in names):
        return SourceKind.run
    if "config.yaml" in names:
        raise ConfigError(f"{key} is a run folder without a checkpoint yet; let it train until it has saved one")
    if "config.json" in names and names & set(_TENSORS):
        return SourceKind.huggingface
    if names & set(_PICKLES):
        raise ConfigError(
            f"{key} holds pickled weights alone, which can run any code when they are read; convert them with "
            f'transformers: AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained("FOLDER")'
        )
    if names & set(_TENSORS):
        raise ConfigError(f"{key} has no config.json, which tells what its tensors are for; put the model's there")
    raise ConfigError(f"{key} holds no trained weights; {_ALLOWED}")


def source_tokenizer(folder: Path) -> Path | None:
    """The tokenizer.json of ``folder``, or of the run folder that the checkpoint ``folder`` is in; None if none is."""
    folder = folder.expanduser()
    is_checkpoint = folder.name == "checkpoints" or folder.parent.name == "checkpoints"
    for place in (folder, *(folder.parents[:2] if is_checkpoint else ())):
        if (place / "tokenizer.json").is_file():
            return place / "tokenizer.json"
    return None


def check_source(config: Config) -> None:
    """See that ``model.init_from`` can be begun from, and that there is a tokenizer for it.

    Raises:
        ConfigError: if not.
    """
    assert config.model.init_from is not None
    folder, named = Path(config.model.init_from), config.data.tokenizer
    source_kind(folder)
    if named.file is None and named.hub_name is None and source_tokenizer(folder) is None:
        raise ConfigError(
            f"model.init_from={folder} has no tokenizer.json, and weights mean nothing without the tokenizer that they "
            "were trained with; write data.tokenizer.file=path/to/tokenizer.json or data.tokenizer.hub_name=NAME"
        )
