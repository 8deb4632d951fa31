"""``SparseTraining`` under ``transformers.Trainer``, which owns the loop."""

import logging
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smet_train.errors import ConfigError
from smet_train.library import Backward, SparseTraining

log = logging.getLogger(__name__)


class SparseTrainingCallback(TrainerCallback):
    """Moves the topology after each of Trainer's steps; hand its optimizer over beside it:

        training = SparseTraining(model, density=0.1, lr=5e-4, total_steps=1000)
        Trainer(model, ..., optimizers=(training.optimizer, None), callbacks=[SparseTrainingCallback(training)])

    Trainer makes the scheduler that its arguments name. Its own checkpoints hold the sparse model and optimizer, so
    ``trainer.train(resume_from_checkpoint=...)`` goes on exactly, the model being built and made sparse as before. For
    a model that ``from_pretrained`` reads, write ``training.dense_copy().save_pretrained(folder)``.

    Args:
        backward: for rules that look at gradients, see :meth:`SparseTraining.after_step`.
    """

    def __init__(self, training: SparseTraining, backward: Backward | Sequence[Backward] = ()) -> None:
        self.training = training
        self.backward = backward
        self._told = False

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Count from where Trainer begins: 0, or the step of its checkpoint.

        Raises:
            ConfigError: if Trainer has another optimizer, or takes another number of steps.
        """
        optimizer = kwargs.get("optimizer")
        if getattr(optimizer, "optimizer", optimizer) is not self.training.optimizer:
            raise ConfigError(
                f"Trainer steps {type(optimizer).__name__}, which knows nothing of the sparse layers; write "
                "Trainer(optimizers=(training.optimizer, None), ...)"
            )
        if state.max_steps != self.training.total_steps:
            raise ConfigError(
                f"Trainer takes {state.max_steps} steps, SparseTraining was made for "
                f"total_steps={self.training.total_steps}; write total_steps={state.max_steps}"
            )
        self.training.go_on_from(state.global_step)

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Say once what Trainer's checkpoints are for."""
        if not self._told:
            log.warning(
                "Trainer's checkpoints hold sparse layers, which from_pretrained does not read: they are for going on "
                "by resume_from_checkpoint; training.dense_copy().save_pretrained(FOLDER) writes a model for others"
            )
            self._told = True

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Move the topology if it is due after this step."""
        self.training.after_step(self.backward)
