"""The console script ``smet-bench``: a named benchmark, composed from the same YAML files as ``smet-train``."""

import shlex
import sys

from smet_train.bench.settings import SpikeBench
from smet_train.config.compose import compose, compose_bench
from smet_train.errors import ConfigError, SmetError

_NAMES = ("spike",)

USAGE = """\
usage: smet-bench NAME [bench.KEY=VALUE ...] [the overrides of smet-train ...]

  smet-bench spike bench.out=outputs/spike     what one topology update does to the loss, by how grown weights train

A benchmark prints its table and writes FOLDER/result.json, the folder being bench.out. Its exit status does not depend
on whether its bars hold. Without +experiment=NAME it trains +experiment=bench_NAME."""


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0)
    try:
        _run(arguments[0], arguments[1:])
    except SmetError as error:
        print(f"smet-bench: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _run(name: str, overrides: list[str]) -> None:
    if name not in _NAMES:
        raise ConfigError(f"there is no benchmark {name}; choose one of {', '.join(_NAMES)}")
    own = [override for override in overrides if override.startswith("bench.")]
    rest = [override for override in overrides if not override.startswith("bench.")]
    if not any(override.startswith("+experiment=") for override in rest):
        rest = [f"+experiment=bench_{name}", *rest]
    bench = compose_bench(own, SpikeBench())
    config = compose(rest)
    from smet_train.bench.spike import run_spike  # imports torch: after all mistakes have been told

    run_spike(config, bench, f"smet-bench {name} {shlex.join(overrides)}".strip())
