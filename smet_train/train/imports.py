"""Imports that would otherwise come within the first steps, and be taken for memory of the model."""

from smet_train.importing import importing
from smet_train.sparse.compiled import numba_is_installed


def import_what_steps_use(device_type: str) -> None:
    """Import now what a run on a ``cpu`` or another device imports at its first step in any case."""
    import torch._dynamo  # noqa: F401  (torch's optimizers do, at their first step)

    if device_type == "cpu" and numba_is_installed():
        with importing():
            from smet_train.optim import kernels  # noqa: F401
            from smet_train.sparse.backends import csr_kernels  # noqa: F401
