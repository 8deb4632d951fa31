"""Imported once by the fork server: everything that a run needs, so that a trial is a fork and no more.

Nothing is computed here, because the threads that computing leaves behind don't survive a fork.
"""

import pyarrow.parquet  # noqa: F401
import rich.progress  # noqa: F401
import torch
import torch._dynamo
import torch._inductor.utils
from datasets.packaged_modules.parquet import parquet  # noqa: F401
from datasets.packaged_modules.text import text  # noqa: F401
from numba import njit
from transformers.models.llama import modeling_llama  # noqa: F401

import smet_train.job
import smet_train.optim.kernels
import smet_train.sparse.backends.csr_kernels  # noqa: F401

torch.set_num_threads(1)
njit(lambda number: number + 1)(1)  # on one thread: loads what compiled functions are read with
