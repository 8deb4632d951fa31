"""A linear layer whose weight exists only at its active sites."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.errors import LayoutError
from smet_train.sparse.backends import Backend, get_backend
from smet_train.sparse.dense import scatter_dense
from smet_train.sparse.index import check_packed, pack, unpack
from smet_train.sparse.layout import Layout
from smet_train.sparse.shards import is_sharded


class SparseLinear(nn.Module):
    """y = x W^T + b with W held as ``values``, (K,) or (G, b, b) for blocks, and an index of the active sites.

    Because the parameter holds active values only, so do its gradient, its optimizer state, gradient clipping,
    all-reduce and checkpoints. The index alone says which sites are active: a grown value starts at 0.0 and is active
    all the same. An average of parameters (EMA, SWA) must follow the sites: see ``smet_train.averaging``. The index is
    held packed (:mod:`smet_train.sparse.index`); ``index`` unpacks it anew each time it is read.

    Args:
        layout: shape and number of active values.
        index_K: the active sites, checked against ``layout``.
        values_K: their values, of the shape that ``layout`` says.
        bias_O: dense bias of shape (O,), or None.
        backend: name of the compute backend.

    Raises:
        LayoutError: if the index breaks an invariant of ``layout``.
        BackendError: if the backend is unknown or can't compute such a layer.
    """

    packed_index: Tensor
    replaced: type[nn.Module] | None = None  # the class of the layer in whose place it is
    _weight_read: Callable[[Tensor], object] | None = None

    def __init__(
        self, layout: Layout, index_K: Tensor, values_K: Tensor, bias_O: Tensor | None = None, backend: str = "densify"
    ) -> None:
        super().__init__()
        layout.validate_index(index_K)
        self.layout = layout
        self.backend: Backend = get_backend(backend, layout, values_K.dtype, values_K.device)
        self.values = nn.Parameter(values_K)
        self.register_buffer("packed_index", pack(index_K, layout))
        self.bias = None if bias_O is None else nn.Parameter(bias_O)
        self._plan: Any = None
        self.register_load_state_dict_post_hook(_after_load)

    @property
    def in_features(self) -> int:
        """I of W, as ``nn.Linear`` has it."""
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        """O of W, as ``nn.Linear`` has it."""
        return self.layout.out_features

    @property
    def index(self) -> Tensor:
        """The active sites, ascending, shape (K,): a fresh tensor.

        Raises:
            LayoutError: if the index is split over processes and not gathered, so that this one has a part of it.
        """
        if is_sharded(self.packed_index):
            raise LayoutError(
                "the index of this layer is split over the processes of the run; read it in the forward or backward "
                "pass, or inside smet_train.topology.whole.made_whole"
            )
        return unpack(self.packed_index, self.layout)

    @torch.no_grad()
    def set_index(self, index_K: Tensor) -> None:
        """Take over other sites, as many as before, ascending; in place."""
        self.packed_index.copy_(pack(index_K, self.layout))
        self.topology_changed()

    def topology_changed(self) -> None:
        """Forget what was worked out for the old index."""
        self._plan = None

    def index_as_parameter(self) -> None:
        """Hold the packed index as a parameter that is not trained, under its name: what splits parameters over
        processes, and gathers them for a pass, then does so with the index."""
        packed = self.packed_index
        del self.packed_index
        self.packed_index = nn.Parameter(packed, requires_grad=False)
        self.topology_changed()

    @torch.no_grad()
    def shrink(self, keep_K: Tensor) -> None:
        """Keep the slots marked in ``keep_K`` (K,) alone; ``values`` stays the same parameter, with fewer entries.

        Raises:
            LayoutError: if nothing would be left.
        """
        layout = replace(self.layout, n_active=int(keep_K.sum()))
        self.packed_index = pack(self.index[keep_K], layout)
        self.values.grad = None
        self.values.data = self.values.data[keep_K]
        self.layout = layout
        self.topology_changed()

    def _apply(self, fn: Any, recurse: bool = True) -> "SparseLinear":
        # Moving the module to another device replaces the index tensor that the plan refers to.
        self.topology_changed()
        super()._apply(fn, recurse)
        return self

    @property
    def weight(self) -> Tensor:
        """W as ``nn.Linear`` has it, (O, I), made anew each time it is read and differentiable in ``values``.

        Modules that compute with a layer's weight instead of calling it work so, at the price of a dense weight and its
        dense gradient. What is written into it would be lost, and is refused.
        """
        weight_OI = scatter_dense(self.values, self.index, self.layout)
        if self._weight_read is not None:
            self._weight_read(weight_OI)
        return weight_OI if torch.compiler.is_compiling() else weight_OI.as_subclass(_ReadOnly)

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O). Under autocast the product runs in autocast's dtype, as ``nn.Linear``'s does.

        Raises:
            RuntimeError: that of ``nn.Linear``, if x has another width or dtype.
        """
        x_NI, plan = input, self._plan
        if plan is None:
            plan = self.backend.plan(self.packed_index, self.layout)
            if "packed_index" in self._buffers:  # a parameter's memory is there in this pass alone
                self._plan = plan
        values_K: Tensor = self.values
        bias_O: Tensor | None = self.bias
        device_type = x_NI.device.type
        if torch.is_autocast_enabled(device_type):  # autocast does not see inside a custom autograd function
            dtype = torch.get_autocast_dtype(device_type)
            x_NI, values_K = _cast(x_NI, dtype), _cast(values_K, dtype)
            bias_O = None if bias_O is None else _cast(bias_O, dtype)
        # Backends take the width of x for that of W, and would reach beyond the index.
        if x_NI.dim() == 0 or x_NI.shape[-1] != self.layout.in_features or x_NI.dtype != values_K.dtype:
            self._refuse(x_NI, values_K)
        y_NO = self.backend.matmul(x_NI, values_K, plan)
        return y_NO if bias_O is None else y_NO + bias_O

    @contextmanager
    def weight_watched(self, watch: Callable[[Tensor], object]) -> Iterator[None]:
        """Inside, ``watch`` is called with the dense weight of each read of :attr:`weight`."""
        self._weight_read = watch
        try:
            yield
        finally:
            self._weight_read = None

    def _refuse(self, x_NI: Tensor, values_K: Tensor) -> None:
        """Raise what ``nn.Linear`` of this shape raises of ``x_NI``, in the words of the torch that is installed."""
        weight_OI = values_K.new_zeros(()).expand(self.out_features, self.in_features)  # of one number
        F.linear(x_NI, weight_OI)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """A dense copy of W, shape (O, I)."""
        return scatter_dense(self.values, self.index, self.layout)

    def extra_repr(self) -> str:
        """Shape, active values, density and backend, for ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, active={self.layout.n_values}, "
            f"density={self.layout.density:.4g}, bias={self.bias is not None}, backend={self.backend.name}"
        )


class _ReadOnly(Tensor):
    """A dense weight that was made for its reader, who can compute with it: what is written into it is lost."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What ``func`` gives for plain tensors; what shares memory with the weight is as it is.

        Raises:
            LayoutError: if ``func`` writes.
        """
        kwargs = kwargs or {}
        written = [kwargs.get("out")]
        if _writes(getattr(func, "__name__", "")):
            written += args[:1] or kwargs.values()  # nn.init hands its tensor over by name
        if any(isinstance(tensor, cls) for tensor in written):
            raise LayoutError(
                "the weight of a sparse layer is made anew each time it is read, so what is written into it is lost; "
                "write into layer.values, or into the layer before it is made sparse"
            )
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **kwargs)
            if isinstance(made, Tensor) and any(isinstance(a, cls) and _share_memory(made, a) for a in args):
                return made.as_subclass(cls)
        return made


_WRITING = {"__setitem__", "__set__", *(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow".split())}


def _writes(name: str) -> bool:
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` as autocast hands it to a product: neither fp64 nor whole numbers are cast."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _after_load(module: nn.Module, _incompatible_keys: Any) -> None:
    assert isinstance(module, SparseLinear)
    check_packed(module.packed_index, module.layout)
    module.topology_changed()
