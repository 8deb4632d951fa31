"""Errors whose message is meant for the person who typed the command.

Every message says what was wrong, where, and what to write instead. The command line prints the message alone, without
a traceback, and exits with ``exit_status``: 2 for a user's mistake, 1 for a failure of the surroundings (a network, a
disk).
"""


class SmetError(Exception):
    """Base of all errors that smet-train raises on purpose.

    Attributes:
        told: another process of the run has this error too, and prints it.
    """

    def __init__(self, message: str, *, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.told = False


class ConfigError(SmetError):
    """A setting is unknown, out of range, or at odds with another one."""


class LayoutError(SmetError):
    """A sparse layout is impossible: too few or too many active values, or an index that breaks its invariants."""


class BackendError(SmetError):
    """No backend can compute a layer; the message holds each backend's reason."""


class DataError(SmetError):
    """A data source or a tokenizer can't be read or does not hold what the settings say."""


class CheckpointError(SmetError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class TrainingError(SmetError):
    """The numbers of a run went wrong and stayed so."""


class MemoryShortage(SmetError):
    """The machine or its GPU has less free memory than was asked for."""


_IN_TRAINING = (
    "Lower train.micro_batch_size (the batch stays as large) or data.sequence_tokens, write "
    "train.activation_checkpointing=true, or take a smaller model; smet-plan with the same settings and "
    "plan.memory_gib=G tells what fits into G GiB"
)


def memory_shortage(error: BaseException, advice: str = _IN_TRAINING) -> MemoryShortage | None:
    """What to tell of ``error`` if memory ran out, with ``advice``; None if it is another error.

    On a CPU torch raises a plain RuntimeError, which its text alone tells from others.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and "can't allocate memory" not in str(error):
        return None
    reason = (str(error).strip().splitlines() or ["no more memory"])[0]
    return MemoryShortage(f"out of memory: {reason}\n{advice}", exit_status=1)
