"""transformers.Trainer trains a model sparse: its optimizer, its checkpoints, one callback."""

import tempfile

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

from smet_train import SparseTraining, SparseTrainingCallback

STEPS = 60


def documents() -> list[dict[str, Tensor]]:
    """Sequences that count upwards in threes from a random start."""
    ids = (torch.randint(64, (256, 1), generator=torch.Generator().manual_seed(0)) + 3 * torch.arange(24)) % 64
    return [{"input_ids": row, "labels": row} for row in ids]


def build(folder: str, **arguments: object) -> tuple[Trainer, SparseTraining]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = AutoModelForCausalLM.from_config(config)
    training = SparseTraining(model, density=0.2, lr=2e-3, total_steps=STEPS, interval=10, lr_density_rule="sqrt")
    trainer = Trainer(
        model,
        TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=16, use_cpu=True, report_to="none", logging_steps=1,
            save_steps=30, disable_tqdm=True, lr_scheduler_type="cosine", warmup_steps=5, **arguments,
        ),
        train_dataset=documents(),
        optimizers=(training.optimizer, None),
        callbacks=[SparseTrainingCallback(training)],
    )  # fmt: skip
    return trainer, training


def main() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build(folder)
        trainer.train()  # after a crash: trainer.train(resume_from_checkpoint=True)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at step {len(losses)}")
