"""Settings that name files: made independent of the working directory, and looked at before a run begins."""

import copy
import os
from pathlib import Path
from typing import Any

from smet_train import opening
from smet_train.config.fields import value_at
from smet_train.config.init_source import check_source
from smet_train.config.schema import Config, DataSource, OnBad
from smet_train.config.validate import FILE_SOURCES
from smet_train.data.patterns import absolute_pattern
from smet_train.errors import ConfigError

# Each a path, a list of paths, or None.
PATH_KEYS = (
    "data.files",
    "data.cache_dir",
    "data.tokenizer.file",
    "model.config_file",
    "model.init_from",
    "checkpoint.resume",
    "plugins",
)
_HEADS_READ = 100  # with more files than these, their heads are left to the run itself


def absolute(key: str, value: Any) -> Any:
    """The value of the setting ``key``, with paths seen from the root; values of other settings as they are."""
    if key not in PATH_KEYS or value is None:
        return value
    if isinstance(value, list):
        return [absolute(key, text) for text in value]
    if "://" in value or (key == "checkpoint.resume" and value in ("auto", "never")):
        return value
    if key == "plugins" and not value.endswith(".py"):  # a module
        return value
    return absolute_pattern(value) if key == "data.files" else os.path.abspath(os.path.expanduser(value))


def with_absolute_paths(config: Config) -> Config:
    """``config`` naming the same files from every working directory, so that a run folder is enough to go on."""
    config = copy.deepcopy(config)
    for key in PATH_KEYS:
        section, _, name = key.rpartition(".")
        setattr(value_at(config, section) if section else config, name, absolute(key, value_at(config, key)))
    return config


def check_files(config: Config, run_folder: Path) -> None:
    """Look at the files that the settings name, without the libraries that train: in a tenth of a second.

    Raises:
        SmetError: if one is missing or is not what the setting says.
    """
    if config.data.source in FILE_SOURCES:
        from smet_train.data import files

        names = files.expand(config.data.files)
        if len(names) <= _HEADS_READ:
            is_parquet = config.data.source is DataSource.parquet
            check = files.check_parquet_head if is_parquet else files.check_text_head
            files.readable_files(names, None if config.data.on_bad is OnBad.skip else check)
    # A run that goes on has its own copy of the tokenizer.
    if config.data.tokenizer.file is not None and not (run_folder / "tokenizer.json").is_file():
        _check_json("data.tokenizer.file", config.data.tokenizer.file, "a tokenizer.json")
    # A run that goes on has its own weights, and those that it began from may be gone.
    resume, has_begun = config.checkpoint.resume, any((run_folder / "checkpoints").glob("step_*"))
    elsewhere = resume not in ("auto", "never")
    if not has_begun:
        require_resumable(resume)
    if config.model.init_from is not None and not elsewhere and not has_begun:
        check_source(config)
    if config.model.config_file is not None:
        _check_json("model.config_file", config.model.config_file, "a transformers config.json")


def require_resumable(resume: str) -> None:
    """Look whether there is what ``checkpoint.resume`` names.

    Raises:
        ConfigError: if not.
    """
    if resume not in ("auto", "never") and not Path(resume).expanduser().exists():
        raise ConfigError(
            f"checkpoint.resume={resume} does not exist; write auto, never, or the path of a checkpoint such as "
            "<run folder>/checkpoints/step_00000500"
        )


def _check_json(key: str, name: str, wanted: str) -> None:
    path = Path(name).expanduser()
    try:
        opening.read_json(path, opening.LARGEST_TOKENIZER)
    except OSError as error:
        missing = "doesn't exist" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror})"
        raise ConfigError(f"{key}={name} {missing}; write the path of {wanted}") from error
    except ValueError as error:
        raise ConfigError(f"{key}={name} is not JSON ({error}); write the path of {wanted}") from error


def folder_override(folder: Path) -> str:
    """What is typed to train in ``folder``, whatever characters its name has."""
    quoted = str(folder).replace("'", r"\'").replace("${", r"\${")
    return f"hydra.run.dir='{quoted}'"
