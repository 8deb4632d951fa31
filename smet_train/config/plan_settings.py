"""Settings of ``smet-plan`` itself, without what plans."""

from dataclasses import dataclass

from smet_train.config.fields import setting


@dataclass
class PlanSettings:
    """Settings of ``smet-plan`` itself, ``plan.*`` on the command line."""

    densities: list[float] = setting("also a table of these densities", [], above=0, at_most=1)
    ranks: list[int] = setting("also a table for these numbers of processes", [], at_least=1)
    memory_gib: float | None = setting("memory that the largest micro-batch is sought for, GiB", None, above=0)
