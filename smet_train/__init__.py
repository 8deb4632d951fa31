"""Pre-training of GPT/LLaMA-style language models with dynamic sparse training (SMET, arXiv 2606.00888)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smet_train.averaging import WeightAverage as WeightAverage
    from smet_train.library import SparseTraining as SparseTraining
    from smet_train.trainer_callback import SparseTrainingCallback as SparseTrainingCallback

__version__ = "0.1.0"

# Read when first asked for: importing smet_train alone needs neither torch nor transformers.
_LIBRARY = {
    "SparseTraining": "smet_train.library",
    "SparseTrainingCallback": "smet_train.trainer_callback",
    "WeightAverage": "smet_train.averaging",
}


def __getattr__(name: str) -> Any:
    if name not in _LIBRARY:
        raise AttributeError(f"module 'smet_train' has no attribute '{name}'")
    return getattr(import_module(_LIBRARY[name]), name)
