"""Settings: typed dataclasses, their validation, and the one boundary with Hydra."""
