"""Settings of the benchmarks, ``bench.*`` on the command line."""

from dataclasses import dataclass

from smet_train.config.fields import setting


@dataclass
class SpikeBench:
    """How the loss behaves after topology updates."""

    out: str = setting("folder of result.json and the plot", "outputs/bench_spike")
    warm_steps: int = setting("steps before the first update, without any update", 300, at_least=1)
    updates: int = setting("topology updates measured", 12, at_least=2)


@dataclass
class LossBench:
    """Methods compared by their validation loss on the same tokens."""

    out: str = setting("folder of result.json, the plot and the runs", "outputs/bench_loss")
    methods: list[str] = setting("presets to compare", ["static", "set", "rigl", "smet", "smet_rigl"])
    densities: list[float] = setting("densities of the sparse methods", [0.25, 0.1], above=0, at_most=1)
    dense: bool = setting("also the dense model", True)
    small_dense: bool = setting("also a dense model with as many parameters as are active, at each density", True)
    seeds: list[int] = setting("seeds of each arm", [1, 2, 3], at_least=0)
    learning_rates: list[float] = setting(
        "grid that each arm's rate is chosen on", [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3], above=0
    )
    tune_steps: int = setting("steps of the runs that choose the rate", 200, at_least=1)
    last_evaluations: int = setting("evaluations at the end of a run whose mean is its loss", 5, at_least=1)
    workers: int = setting("runs at the same time, one thread each", 2, at_least=1)


@dataclass
class LrRuleBench:
    """Which learning-rate rule keeps the best base rate the same over densities."""

    out: str = setting("folder of result.json, the plot and the runs", "outputs/bench_lr_rule")
    rules: list[str] = setting("values of optimizer.lr_density_rule", ["none", "sqrt", "linear"])
    densities: list[float] = setting("densities compared", [1.0, 0.5, 0.25, 0.1], above=0, at_most=1)
    learning_rates: list[float] = setting("base rates", [1.2e-4, 3e-4, 8e-4, 2e-3, 5e-3, 1.2e-2], above=0)
    seeds: list[int] = setting("seeds of each point", [1], at_least=0)
    workers: int = setting("runs at the same time, one thread each", 2, at_least=1)


@dataclass
class SpeedBench:
    """Sparse against dense in time: layers over backends and densities, whole steps, the optimizer."""

    out: str = setting("folder of result.json and the plot", "outputs/bench_speed")
    backends: list[str] = setting("BACKEND or BACKEND:BLOCK", ["csr", "block:32", "block:64", "block:128", "densify"])
    densities: list[float] = setting("densities of the layers", [0.05, 0.1, 0.25, 0.5], above=0, at_most=1)
    precisions: list[str] = setting("fp32, bf16, or both", ["fp32", "bf16"])
    tokens: int = setting("tokens that go through a layer at once", 2048, at_least=1)
    rounds: int = setting("rounds whose median counts", 5, at_least=1)
    whole_steps: bool = setting("also whole training steps, the optimizer and an update", True)


@dataclass
class MemoryBench:
    """Peak memory and speed of a whole process against transformers' own model under torch's AdamW."""

    out: str = setting("folder of result.json", "outputs/bench_memory")
    steps: int = setting("training steps of each process", 4, at_least=2)
    rounds: int = setting("processes of each arm, taking turns; the median counts", 3, at_least=1)
