"""A trained model in formats that others read; see docs/formats.md."""

from smet_train.models.sparse_folder import SparseDescription, read_sparse, read_sparse_tensors

__all__ = ["SparseDescription", "read_sparse", "read_sparse_tensors"]
