"""An average of weights is that of the dense matrices, wherever their sites have moved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smet_train import SparseTraining, WeightAverage
from smet_train.errors import CheckpointError, ConfigError
from smet_train.sparse import SparseLinear
from smet_train.sparse.ledger import sparse_layers

LR = 1e-2


def start(dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[nn.Module, SparseTraining]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16), nn.LayerNorm(16)).to(dtype)
    settings = {
        "include": ["0", "2"],
        "density": 0.25,
        "lr": LR,
        "total_steps": 60,
        "interval": 5,
        "drop_fraction": 0.5,
    }
    return model, SparseTraining(model, **{**settings, **changes})


def step(model: nn.Module, training: SparseTraining) -> None:
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(training.steps)).to(dtype)
    (model(x) - x).square().mean().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.after_step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights as of now, the sparse ones dense."""
    layers = sparse_layers(model)
    rest = {n: p.detach().double().clone() for n, p in model.named_parameters() if not n.endswith(".values")}
    return rest | {name: dense(layer).double() for name, layer in layers.items()}


def dense(layer: nn.Module) -> Tensor:
    assert isinstance(layer, SparseLinear)
    return layer.to_dense()


def oracle(history: list[dict[str, Tensor]], decay: float | None) -> dict[str, Tensor]:
    found = dict(history[0])
    for n, now in enumerate(history[1:], 2):
        weight = 1 / n if decay is None else 1 - decay
        found = {name: (1 - weight) * found[name] + weight * now[name] for name in found}
    return found


def assert_is(average: WeightAverage, expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    """At all sites; and within ``applied`` at those that are active."""
    model = average.model
    for name in sparse_layers(model):
        torch.testing.assert_close(average.dense_weight(name).double(), expected[name], rtol=rtol, atol=1e-3 * rtol)
    before = weights(model)
    with average.applied() as applied:
        assert applied is model
        for name, held in weights(model).items():
            layer = model.get_submodule(name) if name in sparse_layers(model) else None
            active = torch.ones_like(held) if layer is None else active_sites(layer)
            torch.testing.assert_close(held, expected[name] * active, rtol=rtol, atol=1e-3 * rtol)
    assert all(torch.equal(held, before[name]) for name, held in weights(model).items())


def active_sites(layer: nn.Module) -> Tensor:
    assert isinstance(layer, SparseLinear)
    own = layer.values.detach().clone()
    with torch.no_grad():
        layer.values.fill_(1.0)
        sites = layer.to_dense().double()
        layer.values.copy_(own)
    return sites


@pytest.mark.parametrize("decay", [0.9, 0.0, None])
@pytest.mark.parametrize("block", [1, 8])
def test_it_is_the_average_of_the_dense_matrices(decay: float | None, block: int) -> None:
    model, training = start(block=block)
    average, history = WeightAverage(model, decay), []
    for _ in range(23):  # four updates of the topology, and three steps after the last
        step(model, training)
        average.update()
        history.append(weights(model))
    assert_is(average, oracle(history, decay))


def test_torchs_own_average_mixes_weights_up() -> None:
    """Why there is one of our own."""
    model, training = start()
    theirs, ours = AveragedModel(model), WeightAverage(model)
    for _ in range(23):
        step(model, training)
        theirs.update_parameters(model)
        ours.update()
    naive = dense(theirs.module.get_submodule("0"))
    right = ours.dense_weight("0")
    assert float((naive - right).norm() / right.norm()) > 0.5
    torch.testing.assert_close(theirs.module.get_parameter("3.weight"), ours._dense["3.weight"])


def test_checkpoints_are_averaged_by_loading_one_after_the_other() -> None:
    model, training = start()
    saved, history = [], []
    for number in range(1, 31):
        step(model, training)
        if number % 10 == 0:
            saved.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            history.append(weights(model))
    fresh, _ = start()
    average = WeightAverage(fresh)
    for checkpoint in saved:
        fresh.load_state_dict(checkpoint)
        average.update()
    assert_is(average, oracle(history, None))


def test_weights_in_bf16_are_averaged_in_fp32() -> None:
    """A step of an EMA is smaller than their spacing."""
    model, training = start(torch.bfloat16)
    average, history = WeightAverage(model, 0.999), []
    for _ in range(12):
        step(model, training)
        average.update()
        history.append(weights(model))
    expected = oracle(history, 0.999)
    for name in training.layers:
        assert average.dense_weight(name).dtype == torch.float32
        torch.testing.assert_close(average.dense_weight(name).double(), expected[name], rtol=1e-5, atol=1e-7)


def test_what_a_sparse_model_has_no_room_for_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    training = SparseTraining(model, density=0.5, lr=LR, total_steps=10, include=["0"])
    layer = training.layers["0"]
    average = WeightAverage(model)
    with torch.no_grad():
        for sites, values in (([0, 1], [1.0, 2.0]), ([1, 3], [4.0, 8.0])):
            layer.set_index(torch.tensor(sites, dtype=layer.index.dtype))
            layer.values.copy_(torch.tensor(values))
            average.update()
    assert average.dense_weight("0").tolist() == [[0.5, 3.0], [0.0, 4.0]]
    with average.applied():
        assert layer.to_dense().tolist() == [[0.0, 3.0], [0.0, 4.0]]
    assert average.left_out() == pytest.approx(0.25 / 25.25, rel=1e-12)


def test_an_error_inside_gives_the_weights_back() -> None:
    model, training = start()
    average = WeightAverage(model, 0.5)
    for _ in range(7):
        step(model, training)
        average.update()
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert all(torch.equal(held, before[name]) for name, held in weights(model).items())


def test_a_tied_weight_is_averaged_once_and_stays_tied() -> None:
    embedding, head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    average = WeightAverage(model)
    for value in (1.0, 3.0):
        with torch.no_grad():
            head.weight.fill_(value)
        average.update()
    with average.applied():
        assert head.weight is embedding.weight
        assert float(embedding.weight.detach().mean()) == 2.0


def test_a_saved_average_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def go(stop: int | None) -> tuple[nn.Module, WeightAverage]:
        model, training = start(torch.float32)
        average = WeightAverage(model, 0.9)
        for number in range(25):
            step(model, training)
            average.update()
            if number == stop:
                file = tmp_path / "average.pt"
                torch.save([model.state_dict(), training.state_dict(), average.state_dict()], file)
                saved = torch.load(file)
                model, training = start(torch.float32)
                average = WeightAverage(model, 0.9)
                model.load_state_dict(saved[0])
                training.load_state_dict(saved[1])
                average.load_state_dict(saved[2])
        return model, average

    (_, whole), (_, resumed) = go(None), go(12)
    for name in ("0", "2"):
        assert torch.equal(whole.dense_weight(name), resumed.dense_weight(name))
    assert all(torch.equal(whole._dense[name], resumed._dense[name]) for name in whole._dense)
    assert whole.left_out() == resumed.left_out()


def test_what_is_wrong_is_told() -> None:
    model, training = start()
    for decay in (1.0, -0.1):
        with pytest.raises(ConfigError, match=rf"decay={decay} must be at least 0 and below 1; write for instance"):
            WeightAverage(model, decay)
    average = WeightAverage(model, 0.9)
    for ask in (average.left_out, lambda: average.dense_weight("0"), lambda: average.applied().__enter__()):
        with pytest.raises(ConfigError, match=r"no average yet; call update\(\) after a step"):
            ask()
    step(model, training)
    average.update()
    with pytest.raises(ConfigError, match="there is no sparse layer 3; there is 0, 2"):
        average.dense_weight("3")
    with pytest.raises(CheckpointError, match=r"made with decay=0.9, this one has None; write decay=0.9"):
        WeightAverage(model).load_state_dict(average.state_dict())
    with pytest.raises(CheckpointError, match="the average is of another model"):
        WeightAverage(nn.Linear(2, 2), 0.9).load_state_dict(average.state_dict())


def test_parameters_that_are_split_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = start()
    monkeypatch.setattr("smet_train.averaging.is_sharded", lambda _: True)
    with pytest.raises(ConfigError, match="average the checkpoints afterwards, in one process"):
        WeightAverage(model)
