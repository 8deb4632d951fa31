"""The console script ``smet-bench``: a named benchmark, composed from the same YAML files as ``smet-train``."""

import shlex
import sys
from typing import Any

from smet_train import __version__
from smet_train.bench.settings import LossBench, LrRuleBench, MemoryBench, SpeedBench, SpikeBench
from smet_train.cli.ends import run_to_the_end
from smet_train.config.compose import compose, compose_own
from smet_train.config.fields import leaves, spell
from smet_train.config.schema import Config
from smet_train.errors import ConfigError

# Each benchmark's settings, and the experiment that it trains unless another is asked for.
_BENCHMARKS: dict[str, tuple[Any, str]] = {
    "spike": (SpikeBench, "bench_spike"),
    "loss": (LossBench, "bench_loss"),
    "lr_rule": (LrRuleBench, "bench_loss"),
    "speed": (SpeedBench, "bench_speed"),
    "memory": (MemoryBench, "bench_memory"),
}

USAGE = """\
usage: smet-bench NAME [bench.KEY=VALUE ...] [the overrides of smet-train ...]

  smet-bench spike bench.out=outputs/spike     what one topology update does to the loss, by how grown weights train
  smet-bench loss bench.seeds=[1,2,3]          methods x densities x seeds on the same tokens
  smet-bench lr_rule                           which learning-rate rule moves the best base rate least over densities
  smet-bench speed                             layers over backends and densities, whole steps, the optimizer
  smet-bench memory                            peak memory and speed of a process against transformers' own model

A benchmark prints its table and writes FOLDER/result.json, the folder being bench.out. Its exit status does not depend
on whether its bars hold. Typed again, loss and lr_rule keep the runs that are finished. Without +experiment=NAME a
benchmark trains its own.
"""


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        sys.exit(0)
    if arguments == ["--version"]:
        print(f"smet-bench {__version__}")
        sys.exit(0)
    run_to_the_end("smet-bench", lambda: _run(arguments[0], arguments[1:]))


def help_text() -> str:
    """Usage, and the settings of every benchmark."""
    lines = [USAGE]
    for name, (settings, _) in _BENCHMARKS.items():
        lines.append(f"{name}: {settings.__doc__}")
        lines += [f"  {leaf.key}={spell(leaf.default)}\n      {leaf.help}" for leaf in leaves(settings(), "bench.")]
    return "\n".join(lines)


def _run(name: str, overrides: list[str]) -> None:
    if name not in _BENCHMARKS:
        raise ConfigError(f"there is no benchmark {name}; choose one of {', '.join(_BENCHMARKS)}")
    settings, experiment = _BENCHMARKS[name]
    bench = compose_own("bench.", [item for item in overrides if item.startswith("bench.")], settings())
    rest = [item for item in overrides if not item.startswith("bench.")]
    if not any(item.startswith("+experiment=") for item in rest):
        rest = [f"+experiment={experiment}", *rest]

    def configure(more: list[str]) -> Config:
        return compose([*rest, *more])

    config = configure([])
    if getattr(bench, "seeds", None) == []:
        raise ConfigError("bench.seeds=[] leaves nothing to train; write for instance bench.seeds=[1,2,3]")
    command = f"smet-bench {name} {shlex.join(overrides)}".strip()
    # Only now what imports torch: after all mistakes have been told.
    if name == "spike":
        from smet_train.bench.spike import run_spike

        run_spike(config, bench, command)
    elif name == "loss":
        from smet_train.bench.loss import run_loss

        run_loss(configure, bench, command)
    elif name == "lr_rule":
        from smet_train.bench.lr_rule import run_lr_rule

        run_lr_rule(configure, bench, command)
    elif name == "speed":
        from smet_train.bench.speed import run_speed

        run_speed(configure, bench, command)
    else:
        from smet_train.bench.memory import run_memory

        run_memory([*rest], bench, command)


if __name__ == "__main__":
    main()
