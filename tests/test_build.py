"""Settings reach the parts that they configure."""

from collections.abc import Callable

from torch import nn

from smet_train.build import build_optimizer
from smet_train.config.schema import Config


def test_embeddings_train_at_a_rate_of_their_own(quick_config: Callable[..., Config]) -> None:
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2))

    def scales(*overrides: str) -> dict[str, float]:
        groups = build_optimizer(quick_config("optimizer.lr=2e-3", *overrides), model, {}).param_groups
        return {group["role"]: group["lr_scale"] for group in groups}

    assert scales() == {"embedding": 1.0, "dense": 1.0, "no_decay": 1.0}
    assert scales("optimizer.embedding_lr=5e-4") == {"embedding": 0.25, "dense": 1.0, "no_decay": 1.0}
