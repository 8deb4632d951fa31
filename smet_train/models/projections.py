"""Which layers of a model are made sparse when the user names none."""

from torch import nn

from smet_train.sparse.convert import default_layers

PROJECTIONS = {
    "llama": (
        *(f"*.self_attn.{name}_proj" for name in "qkvo"),
        *(f"*.mlp.{name}_proj" for name in ("gate", "up", "down")),
    ),
    "gpt2": ("*.attn.c_attn", "*.attn.c_proj", "*.mlp.c_fc", "*.mlp.c_proj"),
}


def default_projections(family: str, model: nn.Module) -> tuple[str, ...]:
    """Glob patterns of the attention and MLP projections; for an unknown family every linear layer but the output."""
    if family in PROJECTIONS:
        return PROJECTIONS[family]
    return tuple(default_layers(model))
