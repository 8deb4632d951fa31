"""The compute backends by name, and the choice among them at build time."""

import torch

from smet_train.errors import BackendError
from smet_train.sparse.backends.base import Backend
from smet_train.sparse.backends.block import BlockBackend
from smet_train.sparse.backends.csr import CsrBackend
from smet_train.sparse.backends.densify import DensifyBackend
from smet_train.sparse.backends.reference import ReferenceBackend
from smet_train.sparse.backends.triton_blocks import TritonBackend
from smet_train.sparse.layout import Layout

_ALL: tuple[Backend, ...] = (DensifyBackend(), ReferenceBackend(), CsrBackend(), BlockBackend(), TritonBackend())
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}


def register_backend(backend: Backend) -> None:
    """Let ``sparsity.backend`` name a backend of your own; ``auto`` does not choose it.

    Raises:
        BackendError: if it lacks a part of the protocol, or if its name is taken.
    """
    lacking = [part for part in ("name", "unsupported", "plan", "matmul") if not hasattr(backend, part)]
    if lacking:
        raise BackendError(f"the backend {type(backend).__name__} has no {', '.join(lacking)}; see docs/extending.md")
    if backend.name in BACKENDS or backend.name == "auto":
        raise BackendError(f"there is a backend {backend.name} already; give yours another name")
    BACKENDS[backend.name] = backend


def get_backend(name: str, layout: Layout, dtype: torch.dtype, device: torch.device) -> Backend:
    """The backend called ``name``, if it can compute such a layer.

    Raises:
        BackendError: if there is no such backend, or with the backend's own reason why it can't.
    """
    if name not in BACKENDS:
        raise BackendError(f"sparsity.backend={name} is unknown; choose one of {', '.join(BACKENDS)}")
    reason = BACKENDS[name].unsupported(layout, dtype, device)
    if reason is not None:
        raise BackendError(
            f"sparsity.backend={name} cannot compute a {layout.shape_text} layer in {dtype} on {device}: {reason}"
        )
    return BACKENDS[name]


__all__ = ["BACKENDS", "Backend", "get_backend", "register_backend"]
