"""Settings of the benchmarks, ``bench.*`` on the command line."""

from dataclasses import dataclass

from smet_train.config.fields import setting


@dataclass
class SpikeBench:
    """How the loss behaves after topology updates."""

    out: str = setting("folder of result.json and the plot", "outputs/bench_spike")
    warm_steps: int = setting("steps before the first update, without any update", 300, at_least=1)
    updates: int = setting("topology updates measured", 12, at_least=2)
