# ruff: noqa: E402, F401 (imported is what they are for, while the collector rests)
"""Imported once by the fork server: everything that a command needs, so that a process of a test is a fork and no more.

Nothing is computed here, because the threads that computing leaves behind don't survive a fork.
"""

import gc

gc.disable()  # until all is imported, and what was imported is passed over for good: forks then share its memory

import datasets.packaged_modules.parquet.parquet
import datasets.packaged_modules.text.text
import lm_eval.evaluator
import pyarrow.parquet
import rich.progress
import torch
import torch._dynamo
import torch._inductor.utils
import wandb
from numba import njit
from transformers.models.llama import modeling_llama

import smet_train.cli.bench
import smet_train.cli.eval
import smet_train.cli.export
import smet_train.cli.generate
import smet_train.cli.plan
import smet_train.cli.report
import smet_train.cli.train
import smet_train.evaluation.report
import smet_train.export
import smet_train.job
import smet_train.optim.kernels
import smet_train.plan
import smet_train.report.page
import smet_train.sparse.backends.csr_kernels

torch.set_num_threads(1)
njit(lambda number: number + 1)(1)  # on one thread: loads what compiled functions are read with
gc.freeze()
gc.enable()
