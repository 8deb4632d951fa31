"""A config.json of transformers as a run reads it: what is left out of it, and what is said of that."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from smet_train.errors import ConfigError

_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# What would make of the same weights, when they are loaded again, another model than the one that was trained.
_QUANTIZED = ("quantization_config", "compression_config")
# What a caller may ask of a forward pass; a run asks for it itself.
_OUTPUTS = ("return_dict", "output_attentions", "output_hidden_states", "torchscript")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a run builds of a config.json.

    Attributes:
        config: the configuration of transformers, without what a run leaves out.
        remarks: a line for each thing that was left out.
    """

    config: Any
    remarks: tuple[str, ...]


def read_architecture(settings: dict[str, Any], **vocabulary: Any) -> Architecture:
    """The architecture of a config.json's content without what names code, for text alone.

    Args:
        vocabulary: settings of transformers that take the place of the file's: those of the tokenizer.

    Raises:
        ConfigError: if its text model is none that transformers trains alone.
        whatever a configuration of transformers raises for settings that it can't take.
    """
    settings, remarks = _trained(decoded(settings))
    config = _build(settings)
    text = config.get_text_config(decoder=True)
    if text.model_type != config.model_type:
        if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ConfigError(
                f"'{config.model_type}' reads more than text, and transformers has no language model of its text part "
                f"'{text.model_type}' alone; choose an architecture of text"
            )
        remarks.append(f"text alone  of '{config.model_type}' its language model '{text.model_type}' is trained")
        settings, _ = _trained(decoded(text.to_dict()))
    return Architecture(_build({**settings, **vocabulary}), tuple(remarks))


def decoded(value: Any) -> Any:
    """Values of a config.json with the numbers that JSON can't hold, which transformers writes as ``__float__``."""
    if isinstance(value, dict):
        if set(value) == {"__float__"} and value["__float__"] in _FLOATS:
            return _FLOATS[value["__float__"]]
        return {key: decoded(item) for key, item in value.items()}
    return [decoded(item) for item in value] if isinstance(value, list) else value


def is_quantized(settings: dict[str, Any]) -> bool:
    """Whether the weights beside a config.json are stored in a format of their own."""
    return any(settings.get(key) for key in _QUANTIZED)


def _trained(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``settings`` without what training does not use, and the remarks on that."""
    remarks = []
    if is_quantized(settings):
        left_out = ", ".join(key for key in _QUANTIZED if settings.get(key))
        remarks.append(
            f"left out    {left_out} of the config.json: weights begin at random and are trained and exported as they "
            "are held"
        )
    gone = (*_QUANTIZED, *_OUTPUTS)
    return {key: value for key, value in settings.items() if key not in gone}, remarks


def _build(settings: dict[str, Any]) -> Any:
    settings = dict(settings)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)
