"""How a probe is dealt out over processes; that it finds what one process finds is in tests/distributed."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from smet_train.sparse import SparseLinear, sparsify
from smet_train.topology import candidates, probe, sharded_probe
from smet_train.topology.group import ALONE
from smet_train.topology.probe import probe_bytes, probe_gradients
from smet_train.topology.sharded_probe import probe_sharded, sharded_probe_bytes
from tests.topology.test_probe import build, micro_batches

CHUNK = 48


@dataclass
class OneOf:
    """A process of several, of which nothing but its place is asked."""

    rank: int
    size: int
    add_up = add_up_in = spread = whole = None


def many_layers() -> dict[str, SparseLinear]:
    model = nn.Sequential(*[nn.Linear(24, 40 if number % 3 else 16) for number in range(14)]).double()
    return sparsify(model, ["*"], density=0.2, seed=1)


@pytest.mark.parametrize("n_micro_batches", [1, 3])
def test_it_finds_what_one_process_finds(monkeypatch: pytest.MonkeyPatch, n_micro_batches: int) -> None:
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", CHUNK)
    model, layers = build()
    n_grow = {"0": 20, "2": 0}
    micro_batches(model, 1)[0]()  # gradients that were there before are no part of the mean
    one = probe_gradients(layers, n_grow, micro_batches(model, n_micro_batches), active=True)
    several = probe_sharded(layers, n_grow, micro_batches(model, n_micro_batches), active=True, group=ALONE)
    for name, layer in layers.items():
        expected, found = one.of(name), several.of(name)
        if n_grow[name]:
            assert found.sites is not None
            assert expected.sites is not None
            assert torch.equal(found.sites, expected.sites)
        assert (found.sites is None) == (expected.sites is None) == (n_grow[name] == 0)
        torch.testing.assert_close(found.gradient, expected.gradient)
        assert layer.values.grad is None
        assert not layer._forward_hooks


def test_a_layer_that_the_loss_does_not_reach_has_no_candidates() -> None:
    _, layers = build()

    def backward() -> None:
        layers["0"](torch.randn(2, 24, dtype=torch.float64)).sum().backward()

    for times in (1, 2):
        probed = probe_sharded(layers, {"0": 3, "2": 3}, [backward] * times, active=True, group=ALONE)
        assert [probed.of(name).sites.numel() for name in layers] == [3, 0]  # type: ignore[union-attr]
        assert not probed.active_gradients["2"].any()


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("n_grow", [{"0": 3, "2": 3}, {"0": 3, "2": 0}, {"0": 0, "2": 0}], ids=str)
def test_one_number_that_is_not_finite_is_found_where_it_is_looked_at(n_grow: dict[str, int], active: bool) -> None:
    """Infinite in the first row of layer 2 alone."""
    for times in (1, 3):
        _, layers = build()

        def backward(layers: dict[str, SparseLinear] = layers) -> None:
            layers["0"](torch.ones(1, 24, dtype=torch.float64)).sum().backward()
            (layers["2"](torch.ones(1, 40, dtype=torch.float64))[0, 0] * torch.inf).backward()

        seen = "2" if active or n_grow["2"] else None
        one = probe_gradients(layers, n_grow, [backward] * times, active=active)
        several = probe_sharded(layers, n_grow, [backward] * times, active=active, group=ALONE)
        assert one.not_finite == several.not_finite == seen


@pytest.mark.parametrize("size", [2, 4, 20])
def test_the_work_is_dealt_out_evenly(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Also over more processes than there are layers; the micro-batches are run about as often as by one process."""
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", CHUNK)
    layers = many_layers()
    n_grow = dict.fromkeys(layers, 20) | {"3": 0}
    owners = sharded_probe._deal(layers, n_grow, size)
    assert list(owners) == [name for name in layers if name != "3"]
    load = [sum(layers[name].layout.weights for name in owners if owners[name] == rank) for rank in range(size)]
    assert max(load) - min(load) <= 40 * 24
    passes = sharded_probe._passes(layers, owners, size, summed=True)
    assert len(passes) <= len(probe._passes(layers, n_grow, summed=True))
    rows = [rows for rows_of_pass in passes for rows in rows_of_pass]
    assert len(set(rows)) == len(rows)
    assert sum(found.weights for found in rows) == sum(layers[name].layout.weights for name in owners)
    assert len(sharded_probe._passes(layers, owners, size, summed=False)) == 1


@pytest.mark.parametrize("n_micro_batches", [1, 4])
def test_a_process_has_its_share_of_the_room(monkeypatch: pytest.MonkeyPatch, n_micro_batches: int) -> None:
    monkeypatch.setattr(candidates, "CHUNK_WEIGHTS", CHUNK)
    layers = many_layers()
    n_grow = dict.fromkeys(layers, 20)
    one = probe_bytes(layers, n_grow, n_micro_batches, active=False)
    held = [
        sharded_probe_bytes(layers, n_grow, n_micro_batches, False, OneOf(rank, 2))  # type: ignore[arg-type]
        for rank in range(2)
    ]
    assert max(held) <= one / 2 + 3 * 8 * CHUNK
    values = sum(layer.layout.n_values for layer in layers.values())
    active = sharded_probe_bytes(layers, n_grow, n_micro_batches, True, OneOf(0, 2))  # type: ignore[arg-type]
    assert active == held[0] + 8 * values  # of layers that are not split here


def test_nothing_that_grows_takes_no_room() -> None:
    layers = many_layers()
    assert sharded_probe_bytes(layers, dict.fromkeys(layers, 0), 4, False, OneOf(0, 2)) == 0  # type: ignore[arg-type]
