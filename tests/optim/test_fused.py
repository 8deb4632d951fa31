"""A step made inside the backward pass is the step made after it, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smet_train.config.schema import Config
from smet_train.errors import ConfigError
from smet_train.job import run_training
from smet_train.optim import FusedStep, SmetAdamW
from smet_train.sparse import sparsify

QuickConfig = Callable[..., Config]


def make(backend: str) -> tuple[nn.Module, SmetAdamW]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12, bias=False), nn.LayerNorm(12))
    sparsify(model, ["2"], density=0.3, backend=backend)
    return model, SmetAdamW(model.parameters(), lr=0.01, topology_moves=False)


@pytest.mark.parametrize("backend", ["densify", "csr"])
def test_a_fused_step_is_a_step(backend: str) -> None:
    x = torch.randn(7, 12)
    ends = []
    for fused in (False, True):
        model, optimizer = make(backend)
        step = FusedStep(model, optimizer)
        for _ in range(5):
            if fused:
                with step:
                    (model(x) - x).square().mean().backward()
                assert all(p.grad is None for p in model.parameters())
            else:
                (model(x) - x).square().mean().backward()
                norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                optimizer.step()
                optimizer.zero_grad()
        if fused:
            assert step.grad_norm() == pytest.approx(float(norm), rel=1e-6)
        state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        ends.append([*model.parameters(), *state])
    assert all(a.equal(b) for a, b in zip(*ends, strict=True))


def test_outside_of_it_a_backward_pass_leaves_gradients() -> None:
    model, optimizer = make("densify")
    with FusedStep(model, optimizer):
        pass
    model(torch.randn(3, 12)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=smet"],
        ["method=smet_rigl", "model.tie_embeddings=true", "train.activation_checkpointing=true"],
        ["optimizer.moments=fp8", "sparsity.density=0.6"],
        ["method=set", "train.precision=bf16", "model.family=gpt2", "model.kv_heads=null"],
    ],
    ids=" ".join,
)
def test_a_fused_run_is_a_run(quick_config: QuickConfig, tmp_path: Path, overrides: list[str]) -> None:
    for fused in (False, True):
        whole = ["optimizer.grad_clip=0", "train.micro_batch_size=4", f"train.fused_backward_step={str(fused).lower()}"]
        run_training(quick_config(*overrides, *whole), tmp_path / str(fused))
    saved = [sorted((tmp_path / str(f) / "checkpoints" / "step_00000006").glob("*.safetensors")) for f in (False, True)]
    assert len(saved[0]) == 4
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*saved, strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"optimizer\.grad_clip=1 needs the norm of all; write optimizer\.grad_clip=0"),
        (["optimizer.grad_clip=0", "train.micro_batch_size=1"], r"accumulates .* write train\.micro_batch_size=2"),
    ],
)
def test_what_it_can_not_do_is_refused(quick_config: QuickConfig, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quick_config("train.batch_size=2", "train.fused_backward_step=true", *overrides)
