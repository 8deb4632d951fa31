"""What torch's own Transformer modules do with the weights of their linear layers, beyond calling them."""

from torch import nn

from smet_train.sparse.linear import SparseLinear


def reads_weight_itself(model: nn.Module, name: str) -> bool:
    """Whether layer ``name`` is never called: attention computes with the weight of its ``out_proj`` by itself."""
    parent, _, child = name.rpartition(".")
    return child == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention)


def leave_fast_paths(model: nn.Module) -> None:
    """Have encoders with sparse layers call them in evaluation too, where torch's fused kernel takes dense weights.

    The marks are of these modules alone: others keep their fast path.
    """
    for module in model.modules():
        if not any(isinstance(part, SparseLinear) for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # which the fused kernel would be told; the activation stays
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
