"""smet_train as a library: any model, anyone's loop, resumed bit for bit."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smet_train
from smet_train import SparseTraining
from smet_train.errors import CheckpointError, ConfigError
from smet_train.sparse import SparseLinear, default_layers, sparsify
from smet_train.topology import MoveRules
from tests.programs import BOTH, without


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))


def sparse(model: nn.Module, **changes: Any) -> SparseTraining:
    return SparseTraining(
        model, **{"density": 0.2, "lr": 1e-3, "total_steps": 40, "interval": 5, "seed": 3, "include": ["*"], **changes}
    )


def run(model: nn.Module, training: SparseTraining, until: int, scheduler: Any = None) -> None:
    dtype = next(model.parameters()).dtype
    while training.steps < until:
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(training.steps)).to(dtype)
        model(x).square().mean().backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        training.after_step()


def everything(model: nn.Module, training: SparseTraining) -> list[Tensor]:
    state = training.optimizer.state
    held = [value for p in model.parameters() for value in state[p].values() if isinstance(value, Tensor)]
    return [*model.state_dict().values(), *held]


def assert_same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"moments": "fp8", "block": 4}], ids=["fp32", "fp8 moments and blocks"])
def test_a_loop_that_was_stopped_goes_on_bit_for_bit(
    dtype: torch.dtype, settings: dict[str, Any], tmp_path: Any
) -> None:
    def start() -> tuple[nn.Module, SparseTraining, Any]:
        model = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 8)) if settings else small()
        model = model.to(dtype)
        training = sparse(model, **{"density": 0.5, **settings})
        return model, training, torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 40)

    torch.manual_seed(1)
    whole = start()
    run(*whole[:2], 40, whole[2])
    torch.manual_seed(1)
    model, training, scheduler = start()
    run(model, training, 17, scheduler)
    torch.save([model.state_dict(), training.state_dict(), scheduler.state_dict()], tmp_path / "saved.pt")
    torch.manual_seed(2)  # what is loaded decides, not what the fresh model was
    model, training, scheduler = start()
    saved = torch.load(tmp_path / "saved.pt")
    model.load_state_dict(saved[0])
    training.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    run(model, training, 40, scheduler)
    assert_same_bits(everything(*whole[:2]), everything(model, training))


def test_a_layer_that_misses_steps_counts_its_own() -> None:
    """Left out for a step, for whole intervals, and when the topology moves; the loop's own steps go on."""
    model = small()
    training = sparse(model, drop_fraction=0.5, final_drop_fraction=0.5)
    first, last = training.layers.values()
    taken, born = 0, torch.zeros(last.layout.n_active)
    for step in range(1, 41):
        used = step not in (1, 2, 3, 13) and not 21 <= step <= 32
        hidden = first(torch.randn(8, 16)).relu()
        (last(hidden) if used else hidden).square().mean().backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        taken += used
        before = last.index
        moved = training.after_step()
        if moved:
            kept = torch.isin(last.index, before)
            born = torch.full_like(born, taken).masked_scatter(kept, born[torch.isin(before, last.index)])
            ages = training.optimizer.state[first.values]["age"]
            n = first.layout.n_active + last.layout.n_active
            of_first = 5 * int(ages.long().sum())  # which has taken every step
            assert moved["mean_age_steps"] == (of_first + float((taken - born).sum())) / n
    assert [training.optimizer.state[layer.values]["step"] for layer in (first, last)] == [40, taken]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_counts_stay_exact_and_sites_move() -> None:
    model = small()
    training = sparse(model)
    before = {name: layer.index for name, layer in training.layers.items()}
    run(model, training, 11)
    for name, layer in training.layers.items():
        assert layer.index.numel() == before[name].numel() == layer.values.numel() == layer.layout.n_active
        assert not torch.equal(layer.index, before[name])


def test_growth_by_gradient_takes_a_closure_and_asks_for_it() -> None:
    model = small()
    training = sparse(model, rules=MoveRules(grow="gradient"))
    x = torch.randn(8, 16)
    with pytest.raises(ConfigError, match=r"write after_step\(backward\)"):
        run(model, training, 5)
    assert training.steps == 4
    moved = training.after_step(lambda: model(x).square().mean().backward())
    assert moved["grown"] > 0
    assert training.after_step() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, "density=0.0 must be above 0"),
        ({"total_steps": 0}, "must be at least 1"),
        ({"interval": 0}, "must be at least 1"),
        ({"lr_density_rule": "cubic"}, "write one of none, sqrt, linear"),
        ({"drop_fraction": 1.5}, "drop_fraction=1.5"),
        ({"rules": MoveRules(grow="nothing")}, "grow=nothing prunes"),
        ({"include": ["*.q_proj"]}, "matches none of the 2 linear layers"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sparse(small(), **changes)


def test_a_model_without_layers_to_make_sparse_is_refused() -> None:
    with pytest.raises(ConfigError, match="Embedding has no linear layer"):
        sparse(nn.Embedding(4, 4), include=None)


def test_a_state_of_another_length_of_run_is_refused() -> None:
    state = sparse(small()).state_dict()
    with pytest.raises(CheckpointError, match="write total_steps=40"):
        sparse(small(), total_steps=80).load_state_dict(state)


def test_the_output_layer_and_tied_layers_stay_dense_by_default() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(32, 8)
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 32)
            self.other = nn.Linear(8, 8)
            self.other.weight = self.inner.weight

    model = Tied()
    assert default_layers(model) == ["head"]  # of two that share a weight neither; the last of all is one of them
    model = Tied()
    model.other = nn.Linear(32, 8)
    assert default_layers(model) == ["inner", "head"]
    del model.other
    assert default_layers(model) == ["inner"]


@contextmanager
def fast_path(enabled: bool) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("padded", [False, True])
def test_torchs_encoder_computes_the_same_in_evaluation(padded: bool) -> None:
    model = encoder()
    names = default_layers(model)
    assert names == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    sparsify(model, names, density=0.5)
    x = torch.randn(3, 5, 16)
    mask = torch.arange(5) >= torch.tensor([[5], [3], [4]]) if padded else None
    in_training = model(x, src_key_padding_mask=mask).detach()
    with torch.no_grad(), fast_path(True):
        in_evaluation = model.eval()(x, src_key_padding_mask=mask)
    kept = slice(None) if mask is None else ~mask
    torch.testing.assert_close(in_evaluation[kept], in_training[kept])


def test_attention_that_reads_a_weight_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers.0.self_attn.out_proj can't be made sparse.*add '\*.out_proj'"):
        sparse(encoder(), include=["*"])
    model = encoder()
    training = sparse(model, include=["*"], exclude=["*.out_proj"])
    assert sum(isinstance(module, SparseLinear) for module in model.modules()) == len(training.layers) == 4


@BOTH
def test_importing_the_package_alone_reads_no_torch(programs: ModuleType) -> None:
    code = without("torch", "transformers") + "import smet_train"
    programs.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = smet_train.nothing


@pytest.mark.process
def test_the_library_reads_no_transformers() -> None:
    code = without("transformers") + "from smet_train import SparseTraining"
    subprocess.run([sys.executable, "-c", code], check=True)


def frozen_at_first(model: nn.Module) -> nn.Module:
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_a_frozen_layer_is_left_alone(grow: str) -> None:
    model = frozen_at_first(small())
    training = sparse(model, rules=MoveRules(grow=grow))
    first, last = training.layers.values()
    x = torch.randn(8, 16)

    def steps(count: int) -> None:
        for _ in range(count):
            model(x).square().mean().backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
            training.after_step(lambda: model(x).square().mean().backward())

    def held(layer: SparseLinear) -> list[Tensor]:
        return [layer.values.detach().clone(), layer.packed_index.clone()]

    before = held(first), held(last)
    steps(11)
    assert_same_bits(held(first), before[0])
    assert not torch.equal(last.packed_index, before[1][1])
    assert not training.optimizer.state[first.values]  # no moments either
    model.requires_grad_(True)
    last.requires_grad_(False)
    before = held(first), held(last)
    state = copy.deepcopy(training.optimizer.state[last.values])
    steps(10)
    assert_same_bits(held(last), before[1])
    assert_same_bits([training.optimizer.state[last.values]["exp_avg"]], [state["exp_avg"]])
    assert not torch.equal(first.packed_index, before[0][1])
    assert training.optimizer.state[first.values]["step"] == 10
    assert all(parameter.requires_grad == (parameter is not last.values) for parameter in (first.values, last.values))


def test_a_state_saved_with_frozen_layers_goes_on_whatever_is_frozen_now() -> None:
    model = frozen_at_first(small())
    training = sparse(model)
    run(model, training, 7)
    still_frozen = sparse(frozen_at_first(small()))
    still_frozen.load_state_dict(training.state_dict())
    assert not still_frozen.optimizer.state[next(iter(still_frozen.layers.values())).values]
    model.requires_grad_(True)
    run(model, training, 12)
    saved = [copy.deepcopy(model.state_dict()), copy.deepcopy(training.state_dict())]
    run(model, training, 20)
    other = frozen_at_first(small(1))
    resumed = sparse(other)
    other.requires_grad_(True)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    run(other, resumed, 20)
    assert_same_bits(everything(model, training), everything(other, resumed))


class LightningOptimizer:
    """As Lightning steps an optimizer: by a closure, on a class of both with the same attributes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key not in ("step", "__del__")}
        self.__class__ = type("LightningSmetAdamW", (self.__class__, optimizer.__class__), {})
        self._optimizer = optimizer

    def step(self, closure: Any) -> Any:
        return self._optimizer.step(closure=closure)


def test_a_closure_computes_the_loss_as_under_lightning() -> None:
    by_hand, by_closure = small(), small()
    one, other = sparse(by_hand), sparse(by_closure)
    run(by_hand, one, 20)
    optimizer = LightningOptimizer(other.optimizer)
    for step in range(20):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))

        def closure(x: Tensor = x) -> Tensor:
            optimizer._optimizer.zero_grad()
            loss: Tensor = by_closure(x).square().mean()
            loss.backward()
            return loss.detach()

        with torch.no_grad():
            assert optimizer.step(closure) > 0
        other.after_step()
    assert_same_bits(everything(by_hand, one), everything(by_closure, other))
    before = everything(by_closure, other)
    other.optimizer.zero_grad()
    assert optimizer.step(lambda: None) is None  # Lightning's for a batch that is skipped
    assert_same_bits(everything(by_closure, other), before)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_trains_on_as_the_original(copied: Any, dtype: torch.dtype) -> None:
    model = small().to(dtype)
    training = sparse(model, seed=7)
    run(model, training, 12)
    other, others = copied((model, training))
    assert others.optimizer.seed == 7
    run(model, training, 25)
    run(other, others, 25)
    assert_same_bits(everything(model, training), everything(other, others))
    alone = copy.deepcopy(training.optimizer)
    assert alone.state_dict()["state"].keys() == training.optimizer.state_dict()["state"].keys()
    alone.step(lambda: None)


def test_a_scaled_loss_makes_the_same_steps() -> None:
    by_hand, scaled = small(), small()
    one, other = sparse(by_hand), sparse(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run(by_hand, one, 12)
    for step in range(12):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        other.optimizer.zero_grad()
        scaler.scale(scaled(x).square().mean()).backward()
        scaler.step(other.optimizer)
        scaler.update()
        other.after_step()
    assert_same_bits(everything(by_hand, one), everything(scaled, other))


def test_a_state_of_other_layers_names_them() -> None:
    state = sparse(small()).state_dict()
    with pytest.raises(
        CheckpointError, match=r"layer 0 is 64x16 at density 0\.2002 \(205 active values\) in the state"
    ):
        sparse(small(), density=0.3).load_state_dict(state)
    with pytest.raises(
        CheckpointError, match=r"and 64x16 at density 0\.2031 \(208 active values in blocks of 4\) here"
    ):
        sparse(small(), block=4).load_state_dict(state)
    with pytest.raises(CheckpointError, match="layer 2 is sparse in the state and dense here"):
        sparse(small(), include=["0"]).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"the checkpoint's 0\.values\.exp_avg is \(205,\)"):
        sparse(small(), density=0.3).optimizer.load_state_dict(state["optimizer"])
    older = {key: held for key, held in state.items() if key != "layers"}
    sparse(small()).load_state_dict(older)
    with pytest.raises(CheckpointError, match=r"0\.values\.exp_avg"):
        sparse(small(), density=0.3).load_state_dict(older)


def test_a_gradient_probe_leaves_the_gradients_of_dense_parameters_as_they_were() -> None:
    model = small()
    training = sparse(model, interval=1, rules=MoveRules(grow="gradient"), include=["0"])
    x = torch.randn(8, 16)
    training.after_step(lambda: model(x).square().mean().backward())
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x).square().mean().backward()
    gradient = model[2].weight.grad
    assert isinstance(gradient, Tensor)
    before = gradient.clone()
    training.after_step([lambda: model(x).square().mean().backward()] * 2)
    assert model[2].weight.grad is gradient
    assert torch.equal(gradient, before)


def test_a_dense_copy_computes_the_same_and_holds_no_sparse_layer() -> None:
    model = nn.Sequential(small(), nn.Linear(8, 8, bias=False)).double()
    next(model[0].children()).requires_grad_(False)
    model[1].register_forward_hook(lambda _module, _inputs, y: y + 1.0)
    dense_before = model.state_dict().keys()
    training = sparse(model, block=4)
    dense = training.dense_copy()
    assert not any(isinstance(module, SparseLinear) for module in dense.modules())
    assert dense.state_dict().keys() == dense_before
    x = torch.randn(4, 16, dtype=torch.float64)
    torch.testing.assert_close(dense(x), model(x), rtol=1e-12, atol=1e-12)
    assert [p.requires_grad for p in dense.parameters()] == [False, False, True, True, True]
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert bool(training.layers["0.0"].values.any())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_reads_a_dense_copy(family: str, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    config = LlamaConfig(intermediate_size=32, **sizes) if family == "llama" else GPT2Config(**sizes)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    training = sparse(model, include=None)
    copied: Any = training.dense_copy()
    copied.save_pretrained(tmp_path)
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(read(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-6)
