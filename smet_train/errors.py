"""Errors whose message is meant for the person who typed the command.

Every message says what was wrong, where, and what to write instead. The command line prints the message alone, without
a traceback, and exits with ``exit_status``: 2 for a user's mistake, 1 for a failure of the surroundings (a network, a
disk).
"""


class SmetError(Exception):
    """Base of all errors that smet-train raises on purpose."""

    def __init__(self, message: str, *, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status


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
