"""How much of each layer is active: the density of every sparse layer, from one target."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from smet_train.layer_names import check_density_patterns

Shapes = Mapping[str, tuple[int, int]]  # (O, I) of each layer, by name


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Every layer gets the same density (SMET, section 2; SET and RigL call it "uniform")."""
    return dict.fromkeys(shapes, density)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi: density in proportion to (O + I) / (O I), at most 1, ``density`` over all sites (RigL, section 3).

    Layers whose share would exceed 1 are dense, and the others share what is left.
    """
    full: set[str] = set()
    while True:
        sites = {name: rows * columns for name, (rows, columns) in shapes.items()}
        left = density * sum(sites.values()) - sum(sites[name] for name in full)
        weights = {name: sum(shapes[name]) for name in shapes if name not in full}
        scale = left / sum(weights.values()) if weights else 0.0
        over = {name for name, weight in weights.items() if scale * weight > sites[name]}
        if not over:
            return {name: 1.0 if name in full else scale * weights[name] / sites[name] for name in shapes}
        full |= over


ALLOCATIONS = {"uniform": uniform, "erk": erk}


def allocate(shapes: Shapes, density: float, allocation: str, by_pattern: Mapping[str, float]) -> dict[str, float]:
    """Density of each layer: that of the first pattern that its name matches, else by ``allocation``.

    Raises:
        ConfigError: if a pattern matches no layer.
    """
    check_density_patterns(list(shapes), by_pattern)
    fixed: dict[str, float] = {}
    for pattern, pattern_density in by_pattern.items():
        for name in shapes:
            if fnmatchcase(name, pattern):
                fixed.setdefault(name, pattern_density)
    rest = {name: shape for name, shape in shapes.items() if name not in fixed}
    shared = ALLOCATIONS[allocation](rest, density) if rest else {}
    return {name: fixed[name] if name in fixed else shared[name] for name in shapes}
