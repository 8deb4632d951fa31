"""The command line of ``smet-train``: read, checked before anything is made, and handed to Hydra."""

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig

from smet_train import ranks
from smet_train.config.compose import (
    MAIN_CONFIG,
    RESUMED_CONFIG,
    VERSION_BASE,
    compose_settings,
    hydra_compose,
    initialized,
    register,
    searching,
    store_run,
    to_config,
    translated,
)
from smet_train.config.continuation import changed_settings, refuse_changes
from smet_train.config.fields import spell
from smet_train.config.locate import config_folder
from smet_train.config.messages import stray_option
from smet_train.config.new_folder import NewFolder, check_own, check_writable
from smet_train.config.paths import absolute, check_files, require_resumable, with_absolute_paths
from smet_train.config.plain import to_dict
from smet_train.config.saved import checkpoint_named_last
from smet_train.config.schema import Config
from smet_train.config.sweeps import check_sweep
from smet_train.config.validate import validate
from smet_train.errors import ConfigError, SmetError

log = logging.getLogger(__name__)

RunJob = Callable[[Config, Path], int]


def launch(run: RunJob, words: list[str]) -> int:
    """Run what the command line ``words`` asks for; returns the exit status.

    A single run is composed and validated before Hydra makes its folder, a sweep before its first job starts.

    Args:
        run: called with the configuration and the run folder; returns the exit status.

    Raises:
        ConfigError: for a mistake on the command line or in a YAML file.
        SmetError: from ``run``, or from a sweep with failed jobs.
    """
    arguments = _parse(words)
    _refuse_contradictions(arguments)
    return _launch(run, arguments)


def resume(run: RunJob, words: list[str]) -> int:
    """Go on with a run from its folder alone; ``words`` are the folder and overrides of its settings.

    Raises:
        ConfigError: as :func:`launch`; also if the folder holds no run.
    """
    usage = "write smet-train resume RUN_FOLDER [key=value ...]"
    if not words:
        raise ConfigError(f"which run? {usage}, the folder being for instance outputs/demo-1a2b3c4d")
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"smet-train resume takes no options, {word} is one; {usage}")
    folder = Path(words[0]).expanduser()
    if "=" in words[0] and not folder.exists():
        raise ConfigError(f"{words[0]} is where the run folder should be; {usage}")
    folder = folder.absolute()
    saved = store_run(folder)
    _refuse_own_folder(words[1:])
    _refuse_silent_plugins(saved["plugins"], words[1:], folder)
    arguments = _parse(words[1:])
    arguments.config_name = RESUMED_CONFIG

    def check(config: Config) -> None:
        changes = changed_settings(saved, to_dict(with_absolute_paths(config)))
        refuse_changes(changes, folder, own=True)
        named = config.checkpoint.resume
        typed = named != saved["checkpoint"]["resume"]
        if typed and absolute("checkpoint.resume", named) != checkpoint_named_last(folder):  # which may have gone since
            require_resumable(named)

    return _launch(run, arguments, check)


def _launch(run: RunJob, arguments: Namespace, check: Callable[[Config], None] | None = None) -> int:
    if ranks.follows():
        return _follow(run, arguments)
    if arguments.cfg or arguments.shell_completion or arguments.info or arguments.hydra_help:
        return _hand_over(arguments, None)
    if arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides:
        return _hand_over(arguments, _check_sweep(arguments))
    return _run_once(run, arguments, check)


def _hand_over(arguments: Namespace, sweep_folder: Path | None) -> int:
    """Let Hydra do what it does by itself: show something, or give the jobs of a sweep to their launcher."""
    with _folder_errors(sweep_folder), translated(), _errors_raised():
        register()
        version.setbase(VERSION_BASE)
        _run_hydra(
            args=arguments,
            args_parser=get_args_parser(),
            task_function=_no_job,
            config_path=str(config_folder()),
            config_name=MAIN_CONFIG,
        )
    return 0


def _no_job(_: DictConfig) -> NoReturn:
    raise AssertionError("Hydra runs a job in this process")


def _run_once(run: RunJob, arguments: Namespace, check: Callable[[Config], None] | None) -> int:
    """Compose and check everything, then let Hydra make the folder and its log, and run the job."""
    name = arguments.config_name or MAIN_CONFIG
    overrides = searching(arguments.overrides, _config_dir(arguments))
    with translated(), initialized():
        settings = hydra_compose(name, overrides)
        sweeps = settings.hydra.mode == RunMode.MULTIRUN  # as a YAML file says
        if not sweeps:
            job, new = _run_composed(run, settings, name, overrides, check)
    if sweeps:
        return _hand_over(arguments, _check_sweep(arguments))
    if job.error is not None:
        if isinstance(job.error, SmetError) and job.error.exit_status == 2:
            new.remove_if_unused()
        raise job.error
    return job.status


def _run_composed(
    run: RunJob, settings: DictConfig, name: str, overrides: list[str], check: Callable[[Config], None] | None
) -> tuple["_Job", NewFolder]:
    config = to_config(settings)
    validate(config)
    _refuse_fresh_restarts(config)
    folder = _output_folder(settings, "run")
    if check is not None:
        check(config)
    check_writable(folder)
    check_own(folder, config.checkpoint.follow_link)
    check_files(config, folder)
    job = _Job(run, config)
    new = NewFolder(folder)
    with _folder_errors(folder, job), _errors_raised():
        configure_log(settings.hydra.hydra_logging, settings.hydra.verbose)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        vars(hydra)["compose_config"] = lambda **_: settings  # Hydra would do it all again
        hydra.run(name, job, overrides)
    return job, new


def _follow(run: RunJob, arguments: Namespace) -> int:
    """Take part in a run whose first process does all that Hydra does: the folder, its logs, what is shown."""
    logging.basicConfig(level=logging.ERROR, format=f"{ranks.name()}%(message)s")
    with translated():
        settings = compose_settings(
            arguments.overrides,
            arguments.config_name or MAIN_CONFIG,
            _config_dir(arguments),
        )
        config = to_config(settings)
        validate(config)
        folder = _output_folder(settings, "run")
    return run(config, folder)


class _Job:
    """What Hydra calls for a run; keeps what came of it, because Hydra would print an error's overrides too."""

    def __init__(self, run: RunJob, config: Config) -> None:
        self.status = 0
        self.started = False
        self.error: Exception | None = None
        self._run = run
        self._config = config

    def __call__(self, _: DictConfig) -> None:
        self.started = True
        try:
            self.status = self._run(self._config, Path(HydraConfig.get().runtime.output_dir))
        except SmetError as error:
            log.info("ended by an error: %s", error)
            self.error = error
        except Exception as error:
            log.info("ended by a failure", exc_info=True)
            self.error = error


def _parse(words: list[str]) -> Namespace:
    parser = get_args_parser()
    parser.allow_abbrev = False

    def refuse(message: str) -> NoReturn:
        raise ConfigError(stray_option(message))

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(words)


def _refuse_contradictions(arguments: Namespace) -> None:
    """Refuse what Hydra would answer with a traceback, or in a way that this program does not mean."""
    if arguments.config_path is not None:
        raise ConfigError("--config-path would hide the shipped settings; write --config-dir to add a folder to them")
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun does not go on with a run; write smet-train resume RUN_FOLDER")
    shows = arguments.cfg is not None
    if shows + arguments.multirun + arguments.run + arguments.shell_completion + (arguments.info is not None) > 1:
        raise ConfigError(
            "--multirun, --run, --cfg, --info and --shell-completion exclude each other; keep one of them"
        )
    if arguments.resolve and not shows:
        raise ConfigError("--resolve goes with --cfg; write --cfg job --resolve")
    if arguments.package is not None and not shows:
        raise ConfigError("--package goes with --cfg; write --cfg job --package optimizer")
    if arguments.overrides[:1] == ["resume"]:
        raise ConfigError("options don't go before resume; write smet-train resume RUN_FOLDER [key=value ...]")


def _refuse_own_folder(overrides: list[str]) -> None:
    """A run that is resumed has its folder, and is one run."""
    with translated():
        parsed = OverridesParser.create().parse_overrides(overrides)
    for override in parsed:
        key = str(override.key_or_group)
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise ConfigError(f"{override.input_line}: a run is resumed where it is; leave it out")
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} gives several values, but resume goes on with one run; write one")
        if key == "checkpoint.resume" and override.value() == "never":
            raise ConfigError(
                "checkpoint.resume=never starts a fresh run, resume goes on with one; leave one of them out"
            )


def _refuse_silent_plugins(saved: list[str], overrides: list[str], folder: Path) -> None:
    """Plugins are code, and the folder may be somebody else's: those alone are run that the command line repeats."""
    with translated():
        parsed = OverridesParser.create().parse_overrides(overrides)
    if saved and not any(str(override.key_or_group) == "plugins" for override in parsed):
        raise ConfigError(
            f"{folder / 'config.yaml'} names plugins={spell(saved)}, which is Python code; if it is yours, repeat it "
            f"behind the folder: smet-train resume {folder} 'plugins={spell(saved)}'; plugins=[] goes on without"
        )


def _config_dir(arguments: Namespace) -> Path | None:
    return None if arguments.config_dir is None else Path(arguments.config_dir)


def _check_sweep(arguments: Namespace) -> Path:
    """Compose every swept value before anything is made; returns the sweep's folder."""
    if ranks.world_size() > 1:
        raise ConfigError(
            "torchrun starts the processes of one run, a sweep has many; write smet-train -m ... train.processes="
            f"{ranks.world_size()}"
        )
    with translated():
        settings = check_sweep(arguments.overrides, arguments.config_name or MAIN_CONFIG, _config_dir(arguments))
        folder = _output_folder(settings, "sweep")
    check_writable(folder)
    check_own(folder, follow_link=False)
    return folder


def _refuse_fresh_restarts(config: Config) -> None:
    if ranks.restarts() > 0 and config.checkpoint.resume == "never":
        raise ConfigError(
            f"checkpoint.resume=never would let torchrun's --max-restarts={ranks.restarts()} begin at step 0 each "
            "time; leave one of them out, or name a fresh folder with hydra.run.dir=... instead of "
            "checkpoint.resume=never"
        )


def _output_folder(settings: DictConfig, kind: str) -> Path:
    """Where Hydra will write; without effects on what is relative."""
    if settings.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true would change what relative paths mean; leave it out")
    folder = settings.hydra[kind].dir
    if folder is None or not str(folder).strip():
        raise ConfigError(
            f"hydra.{kind}.dir={'' if folder is None else folder} is empty; name a folder, or leave it out"
        )
    return Path(folder).absolute()


@contextmanager
def _folder_errors(folder: Path | None, job: _Job | None = None) -> Iterator[None]:
    """What the file system says when Hydra makes the folder or opens the log, in our words."""
    try:
        yield
    except (OSError, ValueError) as error:  # logging.config wraps an OSError into a ValueError
        if folder is None:  # Hydra was asked to show something, not to run
            raise ConfigError(f"{error}; smet-train --hydra-help tells about the options of Hydra") from error
        reason = error.__cause__ or error
        if (job is not None and job.started) or not isinstance(reason, OSError):
            raise
        raise ConfigError(
            f"the folder {folder} can't be written ({reason.strerror}); choose another one with hydra.run.dir=... or, "
            "for a sweep, hydra.sweep.dir=..."
        ) from error


@contextmanager
def _errors_raised() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them; the environment is as before afterwards."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
