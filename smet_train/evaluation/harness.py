"""A trained model as a model of the LM evaluation harness, ``smet`` in its registry once this module is imported."""

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from smet_train.errors import ConfigError
from smet_train.evaluation.device import choose_device
from smet_train.evaluation.generate import positions_of
from smet_train.train.precision import compute_dtype
from smet_train.trained import Trained, open_trained


@register_model("smet")
class SmetLM(HFLM):
    """``--model smet --model_args checkpoint=RUN[,backend=NAME][,max_length=N]``.

    Texts are tokenized as in training: no special token is read from them, and the end-of-text token stands before
    the first one. Logarithms are taken in fp32, products in the run's precision.

    Args:
        checkpoint: a run folder or a checkpoint, or a model that is open already (``device`` and ``backend`` are its).
        backend: of the sparse layers, in place of the run's own.
        max_length: tokens in a window; None = the run's sequence length, as no position beyond it was trained.
        device: "auto", "cpu", "cuda", …; a GPU that isn't there is the CPU, as everywhere in the harness.

    Raises:
        CheckpointError: as :func:`open_trained`.
        ConfigError: if ``max_length`` is more than the model has positions for.
    """

    def __init__(
        self,
        checkpoint: str | Trained,
        backend: str | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = 64,
        device: str | None = None,
    ) -> None:
        if isinstance(checkpoint, Trained):
            self.trained = checkpoint
        else:
            name = device if device is not None and torch.cuda.is_available() else "auto"
            self.trained = open_trained(Path(checkpoint), choose_device(name), backend=backend)
        positions = positions_of(self.trained)
        if max_length is not None and positions is not None and max_length > positions:
            raise ConfigError(f"max_length={max_length} is too long: the model has positions for {positions} tokens")
        super().__init__(
            pretrained=self.trained.model,
            tokenizer=harness_tokenizer(self.trained),
            backend="causal",
            add_bos_token=False,
            prefix_token_id=self.trained.tokenizer.eos_id,
            max_length=max_length or self.trained.config.data.sequence_tokens,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            mixed_precision_dtype=compute_dtype(self.trained.config.train.precision.name),
            softmax_dtype=torch.float32,
        )

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does; apart where the last token of both together spells all of ``continuation``.

        The harness ends with an AssertionError there, with any tokenizer that merges a word with what follows it.
        """
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if not continuation_ids:
            return context_ids, self.tok_encode(continuation)
        return context_ids, continuation_ids

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results; HFLM's own asks the hub about the model."""
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.trained.model.parameters()),
            "model_dtype": self.model.dtype,
            "model_checkpoint": str(self.trained.checkpoint.absolute()),
            "model_step": self.trained.step,
        }


def harness_tokenizer(trained: Trained) -> PreTrainedTokenizerFast:
    """The run's tokenizer as one of transformers; it reads no special token from text either."""
    eos = trained.tokenizer.eos_token
    return PreTrainedTokenizerFast(
        tokenizer_file=str(trained.run_folder / "tokenizer.json"),
        bos_token=eos,
        eos_token=eos,
        pad_token=eos,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
