"""The settings of an earlier run, read back from its folder alone."""

import logging
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from smet_train import opening
from smet_train.config.fields import leaves
from smet_train.config.messages import nearest, unknown_key
from smet_train.config.plain import flatten, to_dict
from smet_train.config.schema import Config
from smet_train.data.cache import own_cache
from smet_train.errors import ConfigError

log = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
_LISTED = 3


def read_settings(run_folder: Path) -> dict[str, Any]:
    """All settings of the run in ``run_folder``, nested; those that its version did not have yet are defaults.

    ``checkpoint.resume`` is what continues the run: never a fresh start, nor a second way back. What would let somebody
    else's settings write outside of the folder is left out: a link is followed, and a folder that is no cache yet made
    one, where the command line says so.

    Raises:
        ConfigError: if the folder holds no run, or if its config.yaml can't be read or is not whole.
    """
    path = run_folder / CONFIG_NAME
    settings = _completed(path, _loaded(path))
    settings["checkpoint"]["resume"] = _continuing(settings["checkpoint"]["resume"], run_folder)
    settings["checkpoint"]["follow_link"] = False
    settings["data"]["cache_dir"] = own_cache(settings["data"]["cache_dir"])
    return settings


def checkpoint_named_last(run_folder: Path) -> Any:
    """The ``checkpoint.resume`` that the run in ``run_folder`` was started or gone on with last; None if not told.

    Raises:
        ConfigError: if there is no config.yaml, or if it can't be read.
    """
    return _loaded(run_folder / CONFIG_NAME).get("checkpoint", {}).get("resume")


def _loaded(path: Path) -> dict[Any, Any]:
    try:
        if not path.exists():
            raise ConfigError(_no_run(path.parent))
        # Refuses a key that is given twice, as YAML files of the command line are read.
        loaded = opening.read_settings(path, get_yaml_loader())
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); {_REMEDY}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({_first_line(error)}); {_REMEDY}") from error
    return loaded if isinstance(loaded, dict) else {}


_REMEDY = "type the command that started the run, with hydra.run.dir= this folder, and it goes on and writes the file"


def _completed(path: Path, settings: dict[Any, Any]) -> dict[str, Any]:
    """``settings`` in the sections of the schema, each of them there."""
    whole = to_dict(Config())
    sections = [name for name, value in whole.items() if isinstance(value, dict)]
    lost = [name for name in sections if not isinstance(settings.get(name), dict)]
    if lost:
        raise ConfigError(f"{path} is cut short or changed: it has no section {lost[0]}; {_REMEDY}")
    known = {leaf.key for leaf in leaves(Config())}
    given = flatten(settings)
    for key in given:
        if key not in known:
            raise ConfigError(f"{path}: {unknown_key(str(key)[:80])} Or was it written by another version?")
    missing = sorted(known - set(given))
    if missing:
        log.warning("%s has no %s; taken as the default", path, ", ".join(missing))
    for key in missing:
        *parents, name = key.split(".")
        source, target = whole, settings
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        target[name] = source[name]
    return settings


def _continuing(resume: Any, run_folder: Path) -> Any:
    """``auto`` once the run has checkpoints of its own; before, the other run's checkpoint that it began from."""
    begun = any((run_folder / "checkpoints").glob("step_*"))
    return "auto" if begun or resume == "never" else resume


def _no_run(folder: Path) -> str:
    """Why ``folder`` is not what is asked for, and what may be meant."""
    example = "; write for instance smet-train resume outputs/demo-1a2b3c4d"
    if not folder.exists():
        near = nearest(folder.name, [path.name for path in folder.parent.glob("*") if _is_run(path)])
        return f"{folder} does not exist{f'; did you mean {folder.parent / near[0]}?' if near else example}"
    for parent in folder.parents:
        if _is_run(parent):
            return f"{folder} lies in the run folder {parent}; write smet-train resume {parent}"
    if not folder.is_dir():
        return f"{folder} is a file, not a run folder{example}"
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
    if runs:
        more = f" and {len(runs) - _LISTED} more" if len(runs) > _LISTED else ""
        return f"{folder} is no run folder but holds some: {', '.join(map(str, runs[:_LISTED]))}{more}; resume one"
    if (folder / "checkpoints").is_dir():
        return f"{folder} has checkpoints, but no {CONFIG_NAME}; {_REMEDY}"
    return f"{folder} is no run folder: it has no {CONFIG_NAME}{example}"


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
