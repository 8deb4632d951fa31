"""How a command ends: one line for a mistake, an exit status for every end, no traceback for what a person did."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from smet_train.errors import SmetError, memory_shortage
from smet_train.tracking.streams import let_output_encode_anything

INTERRUPTED = 128 + signal.SIGINT


def run_to_the_end(prog: str, run: Callable[[], None], *in_less_memory: str) -> NoReturn:
    """Call ``run``, then exit: 0 when done, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C.

    Args:
        in_less_memory: what to do where memory runs out, if that is not what a training run can do.
    """
    let_output_encode_anything()
    try:
        run()
    except SmetError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has gone; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        shortage = memory_shortage(error, *in_less_memory)
        if shortage is None:
            raise
        print(f"{prog}: {shortage}", file=sys.stderr)
        sys.exit(shortage.exit_status)
    sys.exit(0)
