"""torch's own nn.Transformer, its feed-forward layers sparse and grown where the gradient is largest (RigL)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train import SparseTraining
from smet_train.topology import MoveRules

STEPS = 80


class Reverser(nn.Module):
    """Learns to write a sequence of 16 kinds of tokens backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 64)
        self.place = nn.Parameter(0.02 * torch.randn(8, 64))
        self.transformer = nn.Transformer(64, 4, 2, 2, dim_feedforward=128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 16)

    def forward(self, source: Tensor) -> Tensor:
        target = self.place.expand(source.shape[0], -1, -1)
        return self.head(self.transformer(self.embedding(source) + self.place, target))


def main() -> tuple[Reverser, SparseTraining, list[float]]:
    torch.manual_seed(0)
    model = Reverser()
    # By default the layers of attention that torch computes by itself stay dense, and so does the head.
    training = SparseTraining(
        model, density=0.2, lr=2e-3, total_steps=STEPS, interval=10, lr_density_rule="none",
        rules=MoveRules(grow="gradient"),
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.LinearLR(training.optimizer, 1.0, 0.2, total_iters=STEPS)
    losses = []

    def backward() -> Tensor:
        source = torch.randint(16, (32, 8))
        loss = F.cross_entropy(model(source).flatten(0, 1), source.flip(1).flatten())
        loss.backward()
        return loss

    for _ in range(STEPS):
        training.optimizer.zero_grad()
        losses.append(backward().item())
        training.optimizer.step()
        scheduler.step()
        training.after_step(backward)
    return model.eval(), training, losses


if __name__ == "__main__":
    _, training, losses = main()
    print(f"{len(training.layers)} sparse layers; loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
