"""What ``train.parallel=fsdp`` can't do."""

from collections.abc import Callable

from smet_train.config.fields import spell, value_at
from smet_train.config.schema import Config, Grow, Moments, Parallel
from smet_train.errors import ConfigError

_BLOCKS = "scales 64 moments at a time, which the parts of a process would cut elsewhere than one process does"
# Setting, what it may not be, why not, and what to write instead.
REFUSED: list[tuple[str, Callable[[object], bool], str, str]] = [
    ("topology.grow", lambda v: v is Grow.nothing, "prunes, which changes the shapes that are split", "method=smet"),
    ("optimizer.moments", lambda v: v is Moments.fp8, _BLOCKS, "optimizer.moments=fp32"),
    (
        "train.fused_backward_step",
        lambda v: v is True,
        "updates before the processes have shared a gradient",
        "train.fused_backward_step=false",
    ),
]


def check_sharded(config: Config) -> None:
    """Raises ConfigError if ``train.parallel=fsdp`` meets a setting whose results would not be those of one process."""
    if config.train.parallel is not Parallel.fsdp:
        return
    for key, refused, why, instead in REFUSED:
        read = config.sparsity.enabled or not key.startswith("topology.")
        if read and refused(value_at(config, key)):
            raise ConfigError(
                f"train.parallel=fsdp does not go with {key}={spell(value_at(config, key))}, which {why}; write "
                f"{instead}, or train.parallel=ddp"
            )
