"""How much of each layer is active: the density of every sparse layer, from one target."""

from collections.abc import Iterable


def uniform(layers: Iterable[str], density: float) -> dict[str, float]:
    """Every layer gets the same density (SMET, section 2; SET and RigL call it "uniform")."""
    return dict.fromkeys(layers, density)
