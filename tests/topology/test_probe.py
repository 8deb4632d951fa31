"""Growth candidates against the dense gradient of an ordinary layer."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from smet_train.sparse import SparseLinear, sparsify
from smet_train.topology import probe
from smet_train.topology.probe import probe_gradients


def build(density: float = 0.2, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, dict[str, SparseLinear]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16)).to(dtype)
    return model, sparsify(model, ["0", "2"], density=density, seed=1)


def micro_batches(model: nn.Module, n: int, dtype: torch.dtype = torch.float64) -> list[Callable[[], None]]:
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(3, 5, 24, generator=generator, dtype=dtype) for _ in range(n)]

    def backward(x: Tensor) -> None:
        model(x).square().mean().backward()

    return [partial(backward, x) for x in inputs]


def dense_gradients(layers: dict[str, SparseLinear], n: int) -> dict[str, Tensor]:
    """Mean gradient at every site: of a dense copy, by plain autograd."""
    copy = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16)).double()
    for name, layer in layers.items():
        with torch.no_grad():
            copy.get_submodule(name).get_parameter("weight").copy_(layer.to_dense())
            assert layer.bias is not None
            copy.get_submodule(name).get_parameter("bias").copy_(layer.bias)
    for backward in micro_batches(copy, n):
        backward()
    gradients = {name: copy.get_submodule(name).get_parameter("weight").grad for name in layers}
    return {name: gradient / n for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("n_micro_batches", [1, 4])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_candidates_are_the_largest_mean_gradients(
    monkeypatch: pytest.MonkeyPatch, n_micro_batches: int, rows_at_once: int
) -> None:
    monkeypatch.setattr(probe, "_CHUNK_SITES", rows_at_once * 24)
    monkeypatch.setattr(probe, "POOL", 1000)  # room for every inactive site, so that the choice must be exact
    model, layers = build()
    n_grow = {"0": 200, "2": 150}
    probed = probe_gradients(layers, n_grow, micro_batches(model, n_micro_batches))
    dense = dense_gradients(layers, n_micro_batches)
    for name, layer in layers.items():
        flat = dense[name].flatten()
        sites, gradients = probed.sites[name], probed.gradients[name]
        assert not set(sites.tolist()) & set(layer.index.tolist())
        torch.testing.assert_close(gradients.abs(), flat[sites].abs())
        torch.testing.assert_close(probed.active_gradients[name], flat[layer.index.long()])
        inactive = flat.abs().clone()
        inactive[layer.index.long()] = -1
        wanted = set(inactive.topk(n_grow[name]).indices.tolist())
        best = gradients.abs().topk(n_grow[name]).indices
        assert set(sites[best].tolist()) == wanted


def test_the_pool_is_bounded_and_finds_most_of_the_best() -> None:
    model, layers = build()
    n_grow = {"0": 20, "2": 15}
    probed = probe_gradients(layers, n_grow, micro_batches(model, 6))
    dense = dense_gradients(layers, 6)
    for name, layer in layers.items():
        assert probed.sites[name].numel() <= probe.POOL * n_grow[name]
        inactive = dense[name].flatten().abs()
        inactive[layer.index.long()] = -1
        wanted = set(inactive.topk(n_grow[name]).indices.tolist())
        found = probed.sites[name][probed.gradients[name].abs().topk(n_grow[name]).indices]
        assert len(set(found.tolist()) & wanted) >= 0.7 * len(wanted)
    held = sum(probed.sites[name].numel() * 8 + 2 * probed.gradients[name].numel() * 8 for name in layers)
    assert probed.nbytes == held


def test_no_dense_gradient_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CHUNK_SITES", 48)
    model, layers = build()
    chunks: list[int] = []
    topk = Tensor.topk
    monkeypatch.setattr(Tensor, "topk", lambda self, k: chunks.append(self.numel()) or topk(self, k))  # type: ignore[func-returns-value]
    probe_gradients(layers, {"0": 20, "2": 15}, micro_batches(model, 2))
    assert chunks
    # a chunk of 48 sites, or what two micro-batches hand to the pool; the layer has 960
    assert max(chunks) <= 2 * probe.POOL * 20


def test_gradients_that_were_there_stay_and_hooks_go() -> None:
    model, layers = build()
    micro_batches(model, 1)[0]()
    before = {name: layer.values.grad for name, layer in layers.items()}
    probe_gradients(layers, {"0": 0, "2": 0}, micro_batches(model, 2))
    for name, layer in layers.items():
        assert layer.values.grad is before[name]
        assert not layer._forward_hooks


def test_a_layer_that_the_loss_does_not_reach_has_no_candidates() -> None:
    _, layers = build()

    def backward() -> None:
        layers["0"](torch.randn(2, 24, dtype=torch.float64)).sum().backward()

    probed = probe_gradients(layers, {"0": 3, "2": 3}, [backward])
    assert probed.sites["2"].numel() == 0
    assert not probed.active_gradients["2"].any()


def test_bf16_gradients_are_summed_in_fp32() -> None:
    model, layers = build(dtype=torch.bfloat16)
    probed = probe_gradients(layers, {"0": 3, "2": 3}, micro_batches(model, 3, torch.bfloat16))
    assert {gradient.dtype for gradient in probed.gradients.values()} == {torch.float32}
