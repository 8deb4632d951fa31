"""Models whose logits are the product of the last hidden states with the output layer, and nothing more."""

from torch import nn

# Others scale or cap their logits (Gemma, Cohere, Granite), and must be asked for them.
_PLAIN = {
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
}


def plain_head(model: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """(the model without its output layer, the output layer), or None if the logits are made in another way."""
    if type(model).__name__ not in _PLAIN:
        return None
    body, head = getattr(model, "base_model", None), getattr(model, "lm_head", None)
    # a head that was made sparse is no nn.Linear any more
    if not isinstance(body, nn.Module) or not isinstance(head, nn.Linear) or head.bias is not None:
        return None
    return body, head
