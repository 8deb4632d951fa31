import torch
from torch import nn

from smet_train.optim import SmetAdamW, parameter_groups
from smet_train.sparse import sparsify
from smet_train.sparse.ledger import count_parameters, measure


def test_bytes_of_a_hand_counted_model() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10, bias=False))
    layers = sparsify(model, ["0"], density=0.1)  # 200 sites, 20 active; the rest: 20 biases and 200 weights
    groups = parameter_groups(
        model, dict.fromkeys(layers, 0.1), lr_density_rule="none", weight_decay=0.0, topology_moves=True
    )
    rows = {row.kind: (row.bytes, row.dense_bytes) for row in measure(model, SmetAdamW(groups))}
    assert rows == {
        "values": (80, 800),
        "gradients": (80, 800),
        "moments": (160, 1600),
        "ages": (20, 0),
        "index": (25, 0),  # one bit a site
        "dense rest: parameters": (880, 880),
        "dense rest: gradients": (880, 880),
        "dense rest: moments": (1760, 1760),
    }
    assert count_parameters(model) == (240, 420)


def test_an_index_that_is_held_as_a_parameter_is_not_trained() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10, bias=False))
    layers = sparsify(model, ["0"], density=0.1)

    def groups() -> list[dict[str, object]]:
        return parameter_groups(
            model, dict.fromkeys(layers, 0.1), lr_density_rule="none", weight_decay=0.0, topology_moves=True
        )

    x = torch.randn(3, 10)
    before = count_parameters(model), measure(model, SmetAdamW(groups())), str(groups()), model(x)
    names = set(model.state_dict())
    layers["0"].index_as_parameter()
    assert isinstance(layers["0"].packed_index, nn.Parameter)
    after = count_parameters(model), measure(model, SmetAdamW(groups())), str(groups()), model(x)
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
    assert set(model.state_dict()) == names
    assert layers["0"]._plan is None  # it would refer to memory that comes and goes
    model(x).sum().backward()
    assert layers["0"].packed_index.grad is None


def test_a_dense_model_has_no_sparse_rows() -> None:
    model = nn.Linear(4, 4, bias=False)
    rows = measure(model, SmetAdamW(model.parameters()))
    assert [row.kind for row in rows] == [f"dense rest: {kind}" for kind in ("parameters", "gradients", "moments")]
    assert sum(row.bytes for row in rows) == sum(row.dense_bytes for row in rows) == 256


def test_a_tied_weight_counts_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    assert count_parameters(model) == (15, 15)
    assert measure(model, SmetAdamW(model.parameters()))[0].bytes == 60


def test_bf16_values_keep_fp32_moments_in_the_ledger() -> None:
    model = nn.Sequential(nn.Linear(10, 20, bias=False)).to(torch.bfloat16)
    layers = sparsify(model, ["0"], density=0.5)
    groups = parameter_groups(
        model, dict.fromkeys(layers, 0.5), lr_density_rule="none", weight_decay=0.0, topology_moves=False
    )
    rows = {row.kind: (row.bytes, row.dense_bytes) for row in measure(model, SmetAdamW(groups))}
    assert rows == {"values": (200, 400), "gradients": (200, 400), "moments": (800, 1600), "index": (25, 0)}


def test_moments_in_8_bits_are_two_bytes_a_value_and_two_for_sixty_four() -> None:
    model = nn.Sequential(nn.Linear(100, 128, bias=False), nn.Linear(128, 100))
    layers = sparsify(model, ["0"], density=0.5)  # 6400 of 12800; the rest: 12800 and 100 biases, which keep fp32
    groups = parameter_groups(
        model, dict.fromkeys(layers, 0.5), lr_density_rule="none", weight_decay=0.0, topology_moves=True
    )
    rows = {row.kind: (row.bytes, row.dense_bytes) for row in measure(model, SmetAdamW(groups, moments="fp8"))}
    assert rows["moments"] == (2 * 6400 + 2 * 100, 2 * 12800 + 2 * 200)
    assert rows["ages"] == (6400, 0)
    assert rows["dense rest: moments"] == (2 * 12800 + 2 * 200 + 8 * 100,) * 2
