"""The console script ``smet-train``: a run or a sweep, with every mistake told in one message."""

import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from smet_train import __version__, ranks
from smet_train.cli.help import help_text, resume_text, usage_text
from smet_train.cli.processes import run_processes
from smet_train.config.launch import launch, resume
from smet_train.config.schema import Config
from smet_train.errors import SmetError, memory_shortage
from smet_train.gpu_driver import require_gpu_driver
from smet_train.importing import importing
from smet_train.tracking.streams import let_output_encode_anything, let_output_end_first
from smet_train.tracking.tensorboard_sink import require_tensorboard

_FIRST_WORD_S = 10.0  # torchrun ends the wait when the other process has ended


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure."""
    let_output_encode_anything()
    let_output_end_first()
    faulthandler.enable(2)  # a crash of a library says where; standard error may be another object by now
    logging.raiseExceptions = False  # a train.log on a full disk lacks lines; it is no reason for tracebacks
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before training starts Ctrl-C ends the process, without a traceback
    sys.exit(_status(sys.argv[1:]))


def _status(arguments: list[str]) -> int:
    if not arguments:
        print(usage_text())
        return 0
    if "-h" in arguments or "--help" in arguments:
        print(resume_text() if arguments[0] == "resume" else help_text())
        return 0
    if arguments == ["--version"]:
        print(f"smet-train {__version__}")
        return 0
    try:
        return resume(_train, arguments[1:]) if arguments[0] == "resume" else launch(_train, arguments)
    except SmetError as error:
        if error.told or ranks.follows():
            _let_the_other_speak()
        if not error.told:
            print(f"smet-train: {ranks.name()}{error}", file=sys.stderr)
        return error.exit_status
    except Exception as error:
        shortage = memory_shortage(error)
        if shortage is not None:
            print(f"smet-train: {ranks.name()}{shortage}", file=sys.stderr)
            return shortage.exit_status
        traceback.print_exc()
        print(f"smet-train: {ranks.name()}a failure that it does not know; the lines above say where", file=sys.stderr)
        return 1


def _let_the_other_speak() -> None:
    """torchrun ends all processes as soon as one has failed: give the one that prints the error the time to do so.

    A mistake of this process alone, in settings that are others than the first one's, is told by nobody else, who is
    then still there.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(_FIRST_WORD_S)


def _train(config: Config, run_folder: Path) -> int:
    if config.tracking.tensorboard:
        require_tensorboard()
    require_gpu_driver(config.train.device.name)
    if config.train.processes > 1 and ranks.world_size() == 1:
        return run_processes(config.train.processes, run_folder, sys.argv[1:])
    with importing():  # torch and transformers: only when training starts
        from smet_train.job import run_training

    return run_training(config, run_folder)
