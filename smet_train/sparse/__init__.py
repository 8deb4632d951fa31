"""The sparse library: torch only, usable without the rest of smet-train."""

from smet_train.sparse.convert import choose_layers, default_layers, dense_copy, linear_layer_names, sparsify
from smet_train.sparse.layout import Layout
from smet_train.sparse.linear import SparseLinear

__all__ = ["Layout", "SparseLinear", "choose_layers", "default_layers", "dense_copy", "linear_layer_names", "sparsify"]
