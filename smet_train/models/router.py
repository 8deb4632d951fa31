"""The loss by which the routers of mixture-of-experts models are kept from a few experts, as transformers adds it."""

from typing import Any

from torch import Tensor, nn

# As transformers' models call what they multiply it by.
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


def router_loss(model: nn.Module, output: Any) -> Tensor | None:
    """What transformers adds to the cross-entropy of ``output`` when it trains; None if it adds nothing.

    Its models compute it where ``output_router_logits`` of their configuration is true.
    """
    loss = getattr(output, "aux_loss", None)
    found = _coefficient(model)
    return None if loss is None or found is None else found[1] * loss


def router_remark(model: nn.Module) -> str | None:
    """Whether the routers' loss is added, for a model that has a coefficient for it."""
    config: Any = model.config
    found = _coefficient(model)
    if found is not None:
        name, value = found
        if not value:
            return None
        if getattr(config, "output_router_logits", False):
            return f"router      {name}={value:g} times the routers' loss is added to the loss of training"
        return (
            f"router      {name}={value:g} is not added to the loss, as in transformers while output_router_logits is "
            'false; write "output_router_logits": true into the config.json to add it'
        )
    for name in _COEFFICIENTS:
        if getattr(config, name, 0):
            return f"router      {name}={getattr(config, name):g} is not read by transformers' {type(model).__name__}"
    return None


def _coefficient(model: nn.Module) -> tuple[str, float] | None:
    for name in _COEFFICIENTS:
        value = getattr(model, name, None)
        if isinstance(value, (int, float)):
            return name, float(value)
    return None
