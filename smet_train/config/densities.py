"""Densities of single layers, as they are written in the settings."""

from smet_train.errors import ConfigError


def parse_densities(entries: list[str]) -> dict[str, float]:
    """``["*.q_proj=0.05"]`` as ``{"*.q_proj": 0.05}``.

    Raises:
        ConfigError: if an entry is no PATTERN=DENSITY with a density in (0, 1].
    """
    densities: dict[str, float] = {}
    for entry in entries:
        pattern, _, number = entry.rpartition("=")
        try:
            density = float(number)
        except ValueError:
            density = 0.0
        if not pattern or not 0 < density <= 1:
            raise ConfigError(
                f"sparsity.densities: {entry!r} is no PATTERN=DENSITY with a density in (0, 1]; write for instance "
                "sparsity.densities=['*.q_proj=0.05']"
            )
        densities[pattern] = density
    return densities
