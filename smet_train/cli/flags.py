"""What the commands with a path and flags share."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from smet_train import __version__
from smet_train.cli.ends import run_to_the_end
from smet_train.config.schema import Backend
from smet_train.errors import CheckpointError, ConfigError

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = tuple(backend.name for backend in Backend if backend is not Backend.auto)


class Flags(argparse.ArgumentParser):
    """A parser whose mistakes are errors like all others.

    Args:
        in_less_memory: what to do where memory runs out.
    """

    def __init__(self, prog: str, description: str, examples: str, in_less_memory: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.in_less_memory = in_less_memory
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a wrong flag.

        Raises:
            ConfigError: always; its message names the flag and where help is.
        """
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_checkpoint(flags: Flags) -> None:
    """The checkpoint, and code that it needs: that which its settings name is not run."""
    flags.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run folder, or a checkpoint in it")
    flags.add_argument(
        "--plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module of a plugin; may be repeated",
    )


def add_model_flags(flags: Flags) -> None:
    """The checkpoint, and where and how its model is computed."""
    add_checkpoint(flags)
    flags.add_argument("--device", choices=DEVICES, default="auto", help="auto = the GPU where there is one")
    flags.add_argument("--backend", choices=BACKENDS, help="of the sparse layers; default: the run's own")


def check_exists(checkpoint: Path) -> None:
    """Raises CheckpointError if there is nothing at ``checkpoint``: told before torch is imported."""
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint} does not exist; give a run folder, or a checkpoint in its checkpoints/")


def number(
    kind: type[int] | type[float], at_least: float, at_most: float = math.inf, *, above: bool = False
) -> Callable[[str], int | float]:
    """An argparse type: a number from ``at_least`` (``above``: beyond it) to ``at_most``."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value > at_least or (value == at_least and not above)) or value > at_most or value == math.inf:
            what = "a whole number" if kind is int else "a number"
            limits = f"{'above' if above else 'of at least'} {at_least:g}"
            limits += "" if at_most == math.inf else f" and at most {at_most:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limits}")
        return value

    return parse


def run_command(flags: Flags, run: Callable[[argparse.Namespace], None]) -> NoReturn:
    """Run a console script; see :func:`~smet_train.cli.ends.run_to_the_end`."""
    if len(sys.argv) == 1:
        print(f"{flags.format_usage()}\n{flags.epilog}\n\n{flags.prog} --help says more.")
        sys.exit(0)
    run_to_the_end(flags.prog, lambda: run(flags.parse_args()), flags.in_less_memory)
