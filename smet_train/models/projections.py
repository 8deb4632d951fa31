"""Which layers of a model are made sparse when the user names none."""

from torch import nn

from smet_train.layer_names import PROJECTIONS
from smet_train.sparse.convert import default_layers


def default_projections(family: str, model: nn.Module) -> tuple[str, ...]:
    """Glob patterns of the attention and MLP projections; for an unknown family every linear layer but the output."""
    if family in PROJECTIONS:
        return PROJECTIONS[family]
    return tuple(default_layers(model))
