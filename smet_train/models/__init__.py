"""Models from transformers, and which of their layers are sparse."""

from transformers.utils import import_utils

from smet_train.importing import not_installed


def _ask_again() -> None:
    """transformers remembers whether these are installed."""
    import_utils.is_scipy_available.cache_clear()
    import_utils.is_sklearn_available.cache_clear()


# Wherever they are installed, as by lm_eval, transformers imports them, for losses of object detection and for assisted
# generation.
_ask_again()
with not_installed("scipy", "sklearn"):
    import transformers.generation
    import transformers.modeling_utils  # noqa: F401
_ask_again()

from smet_train.models.build import (  # noqa: E402
    ModelSpec,
    build_model,
    checkpoint_activations,
    left_out,
    transformers_config,
)
from smet_train.models.dense_rest import Blocks, blocks_of, refuse_other_parameters  # noqa: E402
from smet_train.models.head import plain_head  # noqa: E402
from smet_train.models.pretrained import Pretrained  # noqa: E402
from smet_train.models.projections import default_projections  # noqa: E402
from smet_train.models.router import router_loss, router_remark  # noqa: E402

__all__ = [
    "Blocks",
    "ModelSpec",
    "Pretrained",
    "blocks_of",
    "build_model",
    "checkpoint_activations",
    "default_projections",
    "left_out",
    "plain_head",
    "refuse_other_parameters",
    "router_loss",
    "router_remark",
    "transformers_config",
]
