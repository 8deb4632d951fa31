"""Short names for runs: what tells each from the others."""

from collections.abc import Sequence
from typing import Any

from smet_train.report.runs import RunRecord

DENSITY, SEED, METHOD = "sparsity.density", "seed", "method"
_HEADER = {METHOD: "method", DENSITY: "density", SEED: "seed"}


def facts(run: RunRecord) -> dict[str, Any]:
    """Lasting settings by dotted key. The first event wins: it has the density 1 for what is dense."""
    return {**run.settings, **{key: run.fact(name) for key, name in _HEADER.items() if run.fact(name) is not None}}


def labels(runs: Sequence[RunRecord], without: tuple[str, ...] = ()) -> list[str]:
    """One label a run, of the settings that differ, but those of ``without``; where none does, the folder's name.

    If ``without`` is empty no two labels are equal: as much of a folder's path is in them as that takes.

    Settings that follow from the method (they are the same in all runs of it) go without saying.
    """
    told = _differing(runs, without)
    texts = [", ".join(_spell(key, facts(run).get(key)) for key in told) for run in runs]
    if without:
        return [text or str(facts(run).get(METHOD, "runs")) for text, run in zip(texts, runs, strict=True)]
    twice = len(set(texts)) < len(texts)
    names = [run.folder.name for run in runs]
    if twice and len(set(names)) < len(names):
        names = [f"{run.folder.parent.name}/{run.folder.name}" for run in runs]
    if twice and len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return [f"{text} ({name})" if text and twice else text or name for text, name in zip(texts, names, strict=True)]


def _differing(runs: Sequence[RunRecord], without: tuple[str, ...]) -> list[str]:
    known = [facts(run) for run in runs]
    keys = dict.fromkeys(key for fact in known for key in fact)
    told = []
    for key in sorted(keys, key=lambda key: (key != METHOD, key != DENSITY, key == SEED)):
        by_method: dict[str, set[str]] = {}
        for fact in known:
            by_method.setdefault(str(fact.get(METHOD)), set()).add(repr(fact.get(key)))
        alone = len(set().union(*by_method.values())) == 1
        follows = key not in (METHOD, DENSITY) and all(len(values) == 1 for values in by_method.values())
        if key not in without and not alone and not follows:
            told.append(key)
    return told


def _spell(key: str, value: Any) -> str:
    if key == METHOD:
        return str(value)
    if key == DENSITY:
        return "d=?" if value is None else f"d={value:g}"  # a run of an older version did not write it
    name = key.rsplit(".", 1)[-1]
    return f"{name} {value}" if key == SEED else f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
