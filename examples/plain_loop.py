"""A causal language model of transformers, trained sparse in a plain PyTorch loop, and gone on with from a file."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from smet_train import SparseTraining

STEPS = 60


def build() -> tuple[PreTrainedModel, SparseTraining]:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    return model, SparseTraining(model, density=0.2, lr=2e-3, total_steps=STEPS, interval=10, lr_density_rule="sqrt")


def batch(step: int) -> torch.Tensor:
    """Sequences that count upwards in threes from a random start."""
    start = torch.randint(64, (16, 1), generator=torch.Generator().manual_seed(step))
    return (start + 3 * torch.arange(24)) % 64


def train(model: PreTrainedModel, training: SparseTraining, until: int) -> list[float]:
    losses = []
    while training.steps < until:
        ids = batch(training.steps)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.after_step()
        losses.append(loss.item())
    return losses


def main() -> list[float]:
    model, training = build()
    losses = train(model, training, until=35)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "training": training.state_dict()}, file)
        model, training = build()  # as after a crash
        saved = torch.load(file)
    model.load_state_dict(saved["model"])
    training.load_state_dict(saved["training"])
    return losses + train(model, training, until=STEPS)


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at step {len(losses)}")
