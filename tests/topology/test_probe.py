"""Sites to grow against the dense gradient of an ordinary layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smet_train.sparse import Layout, SparseLinear, sparsify
from smet_train.sparse.dense import gather_values
from smet_train.topology import candidates, probe
from smet_train.topology.group import ALONE
from smet_train.topology.probe import probe_gradients
from smet_train.topology.sharded_probe import probe_sharded


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


@pytest.mark.parametrize("n_micro_batches", [1, 4, 32])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_the_sites_are_those_of_the_largest_mean_gradients(
    monkeypatch: pytest.MonkeyPatch, n_micro_batches: int, rows_at_once: int
) -> None:
    """Also where the mean over micro-batches is small beside their noise, as over 32 of random inputs."""
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", rows_at_once * 24)
    model, layers = build()
    n_grow = {"0": 20, "2": 150}
    probed = probe_gradients(layers, n_grow, micro_batches(model, n_micro_batches), active=True)
    dense = dense_gradients(layers, n_micro_batches)
    for name, layer in layers.items():
        flat = dense[name].flatten()
        torch.testing.assert_close(probed.active_gradients[name], flat[layer.index.long()])
        inactive = flat.abs()
        inactive[layer.index.long()] = -1
        assert probed.sites[name].tolist() == sorted(inactive.topk(n_grow[name]).indices.tolist())
        assert probed.sites[name].dtype == layer.index.dtype


class Shared(nn.Module):
    """One layer called twice, and behind it one that is called once."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(24, 24)
        self.once = nn.Linear(24, 30)

    def forward(self, x: Tensor) -> Tensor:
        once: Tensor = self.once(self.twice(self.twice(x).tanh()).tanh())
        return once


def shared(block: int) -> tuple[Shared, Shared, dict[str, SparseLinear]]:
    """A sparse model, the same one dense, and the sparse layers."""
    torch.manual_seed(0)
    model, dense = Shared().double(), Shared().double()
    layers = sparsify(model, ["*"], density=0.3, seed=1, block=block)
    with torch.no_grad():
        for name, layer in layers.items():
            assert layer.bias is not None
            dense.get_submodule(name).get_parameter("weight").copy_(layer.to_dense())
            dense.get_submodule(name).get_parameter("bias").copy_(layer.bias)
    return model, dense, layers


def best_inactive(gradient_OI: Tensor, layer: SparseLinear, n: int) -> list[int]:
    """The ``n`` inactive sites of largest |gradient|, of a block the sum over its values, ascending."""
    block = layer.layout.block
    scores = F.avg_pool2d(gradient_OI.abs()[None], block, ceil_mode=True, divisor_override=1).flatten()
    scores[layer.index.long()] = -1
    return sorted(scores.topk(n).indices.tolist())


@pytest.mark.parametrize("probe_by", [probe_gradients, partial(probe_sharded, group=ALONE)], ids=["one", "sharded"])
@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("block", [1, 4])
def test_a_layer_that_is_called_twice_is_ranked_by_the_sum_of_its_gradients(
    monkeypatch: pytest.MonkeyPatch, block: int, n_micro_batches: int, probe_by: Callable[..., Any]
) -> None:
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", 48)
    model, dense, layers = shared(block)
    n_grow = {"twice": 100 // block**2, "once": 64 // block**2}
    probed = probe_by(layers, n_grow, micro_batches(model, n_micro_batches), active=True)
    for backward in micro_batches(dense, n_micro_batches):
        backward()
    for name, layer in layers.items():
        gradient = dense.get_submodule(name).get_parameter("weight").grad
        assert gradient is not None
        found = probed.of(name)
        assert found.sites.tolist() == best_inactive(gradient, layer, n_grow[name])
        expected = gather_values(gradient / n_micro_batches, layer.index, layer.layout)
        torch.testing.assert_close(found.gradient, expected, rtol=1e-12, atol=1e-14)
        assert layer.values.requires_grad


def test_only_what_is_called_twice_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that calls each layer once runs a micro-batch once; another one again, for as many passes as fit."""
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", 48)
    for model, layers in (build(), shared(1)[::2]):
        runs = 0

        def backward(model: nn.Module = model) -> None:
            nonlocal runs
            runs += 1
            micro_batches(model, 1)[0]()

        probe_gradients(layers, dict.fromkeys(layers, 5), [backward])
        room = sum(layer.layout.n_values for layer in layers.values())
        assert runs == (1 if "0" in layers else 1 + -(-24 * 24 // (room // 48 * 48)))


def test_the_last_rows_of_a_layer_with_as_many_sites_as_32_bits_tell_apart() -> None:
    layout = Layout(1 << 16, 1 << 15, 3)
    index = torch.tensor([5, 2**31 - 4, 2**31 - 1], dtype=torch.int32)
    slots, inside = candidates.active_inside(index, layout, candidates.Rows("a", (1 << 16) - 1, 1 << 16, 1 << 15))
    assert (slots, inside.tolist()) == (slice(1, 3), [(1 << 15) - 4, (1 << 15) - 1])


class ProductSizes(TorchDispatchMode):
    """Elements of the results of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("n_micro_batches", [1, 3])
def test_no_dense_gradient_is_ever_made(monkeypatch: pytest.MonkeyPatch, n_micro_batches: int, active: bool) -> None:
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", 96)
    model, layers = build()
    with ProductSizes() as products:
        probe_gradients(layers, {"0": 20, "2": 15}, micro_batches(model, n_micro_batches), active=active)
    # 96 sites are 4 rows of layer 0 and 2 rows of layer 2; the other products have 15 tokens times 16 or 40 features
    assert set(products.sizes) <= {4 * 24, 2 * 40, 15 * 16, 15 * 40}
    assert 4 * 24 in products.sizes
    assert 40 * 24 not in products.sizes
    micro_batches(model, 1)[0]()
    assert layers["0"].values.grad is not None


@pytest.mark.parametrize("n_micro_batches", [1, 3])
def test_what_is_dense_at_one_time_fits_the_room_of_the_gradients(
    monkeypatch: pytest.MonkeyPatch, n_micro_batches: int
) -> None:
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", 48)
    _, layers = build(density=0.2)  # 192 + 128 active values of 960 + 640
    n_grow = {"0": 20, "2": 15}
    passes = probe._passes(layers, n_grow, summed=n_micro_batches > 1)
    assert sum(rows.weights for rows_of_pass in passes for rows in rows_of_pass) == 960 + 640
    best, active = 35 * (8 + 4), 320 * 8
    if n_micro_batches == 1:
        assert len(passes) == 1
        dense = 48 * 8  # two rows of 24
    else:
        assert len(passes) == 6  # 1600 / 320, and what does not fit evenly
        assert max(sum(rows.weights for rows in rows_of_pass) for rows_of_pass in passes) == 320
        dense = 320 * 8
    assert probe.probe_bytes(layers, n_grow, n_micro_batches, active=False) == dense + best
    assert probe.probe_bytes(layers, n_grow, n_micro_batches, active=True) == dense + best + active


def test_gradients_that_were_there_stay_and_hooks_go() -> None:
    model, layers = build()
    micro_batches(model, 1)[0]()
    before = {name: layer.values.grad for name, layer in layers.items()}
    probe_gradients(layers, {"0": 0, "2": 0}, micro_batches(model, 2))
    for name, layer in layers.items():
        assert layer.values.grad is before[name]
        assert layer.values.requires_grad
        assert not layer._forward_hooks


def test_a_layer_that_the_loss_does_not_reach_has_no_candidates() -> None:
    _, layers = build()

    def backward() -> None:
        layers["0"](torch.randn(2, 24, dtype=torch.float64)).sum().backward()

    probed = probe_gradients(layers, {"0": 3, "2": 3}, [backward], active=True)
    assert probed.sites["2"].numel() == 0
    assert not probed.active_gradients["2"].any()
    assert (probed.sites["0"].numel(), bool(probed.active_gradients["0"].any())) == (3, True)


def test_bf16_gradients_are_summed_in_fp32() -> None:
    model, layers = build(dtype=torch.bfloat16)
    probed = probe_gradients(layers, {"0": 3, "2": 3}, micro_batches(model, 3, torch.bfloat16), active=True)
    assert {gradient.dtype for gradient in probed.active_gradients.values()} == {torch.float32}
