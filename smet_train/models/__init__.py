"""Models from transformers, and which of their layers are sparse."""

from smet_train.models.build import ModelSpec, build_model, checkpoint_activations, transformers_config
from smet_train.models.head import plain_head
from smet_train.models.pretrained import Pretrained
from smet_train.models.projections import default_projections

__all__ = [
    "ModelSpec",
    "Pretrained",
    "build_model",
    "checkpoint_activations",
    "default_projections",
    "plain_head",
    "transformers_config",
]
