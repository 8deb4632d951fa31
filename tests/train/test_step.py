"""One step: accumulation, evaluation, precision and the probe, against what they are defined to be."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smet_train.sparse import SparseLinear, sparsify
from smet_train.tracking.spikes import SpikeMeter
from smet_train.train.evaluate import mean_loss, perplexity
from smet_train.train.precision import compute_context, hold_parameters
from smet_train.train.spike_watch import SpikeWatch
from smet_train.train.step import TokenLoss, forward_backward, token_loss

CPU = torch.device("cpu")


class Model(nn.Module):
    """The smallest thing that is called like a causal language model."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8, bias=False)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert use_cache is False
        logits = self.head(self.drop(torch.tanh(self.body(self.embed(input_ids)))))
        return type("Output", (), {"logits": logits})()


def windows(n_windows: int, tokens: int = 7) -> Tensor:
    return torch.randint(0, 11, (n_windows, tokens), generator=torch.Generator().manual_seed(3))


def test_the_loss_is_the_mean_over_predicted_tokens() -> None:
    model, batch = Model().double(), windows(4)
    logits = model(batch[:, :-1], use_cache=False).logits
    log_p = logits.log_softmax(-1)
    expected = -sum(log_p[b, t, batch[b, t + 1]] for b in range(4) for t in range(6)) / 24
    torch.testing.assert_close(token_loss(model, batch, "fp32").double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 6])
def test_micro_batches_add_up_to_the_batch(micro_batches: int) -> None:
    model, batch = Model(), windows(6)
    sparsify(model, ["body"], density=0.5, seed=1, backend="densify")
    whole = forward_backward(TokenLoss(model, "fp32"), iter([batch]), 1, CPU)
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    loss = forward_backward(TokenLoss(model, "fp32"), iter(batch.chunk(micro_batches)), micro_batches, CPU)
    assert loss == pytest.approx(whole, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5, 9])
def test_evaluation_weighs_every_token_alike_and_leaves_the_model_as_it_was(micro_batch_size: int) -> None:
    model, held = Model(dropout=0.5), windows(5)
    expected = F.cross_entropy(model.eval()(held[:, :-1], use_cache=False).logits.flatten(0, 1), held[:, 1:].flatten())
    model.train()
    assert mean_loss(model, held, micro_batch_size, "fp32") == pytest.approx(expected.item(), rel=1e-6)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(2.0) == pytest.approx(math.e**2)
    assert perplexity(1e4) == math.inf


@pytest.mark.parametrize(
    ("precision", "held", "computed"),
    [("fp32", "float32", "float32"), ("bf16_mixed", "float32", "bfloat16"), ("bf16", "bfloat16", "bfloat16")],
)
def test_precision_says_what_is_held_and_what_is_computed(precision: str, held: str, computed: str) -> None:
    model = Model()
    model.register_buffer("frequencies", torch.ones(2))
    layers = sparsify(model, ["body"], density=0.5, seed=1, backend="densify")
    hold_parameters(model, precision)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{held}"}
    assert model.get_buffer("frequencies").dtype == torch.float32
    seen: list[str] = []
    layers["body"].register_forward_hook(lambda _layer, _inputs, output: seen.append(str(output.dtype)))
    loss = token_loss(model, windows(2), precision)
    assert (seen, loss.dtype) == ([f"torch.{computed}"], torch.float32)
    loss.backward()
    assert isinstance(layers["body"], SparseLinear)
    gradient = layers["body"].values.grad
    assert gradient is not None
    assert str(gradient.dtype) == f"torch.{held}"
    with compute_context(CPU, "fp32"):
        assert not torch.is_autocast_enabled("cpu")


def spike_meter(source: str) -> SpikeMeter:
    return SpikeMeter(source=source, horizon_steps=2, baseline_steps=1, beta2=0.95)


def test_the_probe_loss_is_taken_only_while_a_window_is_open() -> None:
    taken: list[int] = []

    def probe_loss() -> float:
        taken.append(1)
        return float(len(taken))

    watch = SpikeWatch(spike_meter("train"), spike_meter("probe"), probe_loss)
    assert watch.before_step(1) == []
    assert watch.after_step(1, 5.0) == []
    assert taken == []
    assert watch.topology_moved(1, watch.probe_baseline()) == []
    events = watch.before_step(2)
    assert watch.before_step(2) == []  # tried again with other batches: one probe loss a step
    events += watch.after_step(2, 6.0) + watch.before_step(3) + watch.after_step(3, 4.0)
    assert len(taken) == 3
    assert [(e["source"], e["baseline"], e["peak"]) for e in events] == [("probe", 1.0, 3.0), ("train", 5.0, 6.0)]
    assert watch.before_step(4) == []
    assert len(taken) == 3


def test_without_a_probe_only_the_training_loss_is_watched() -> None:
    watch = SpikeWatch(spike_meter("train"))
    watch.after_step(1, 5.0)
    assert watch.probe_baseline() is None
    watch.topology_moved(1, None)
    watch.before_step(2)
    watch.after_step(2, 7.0)
    (event,) = watch.finish()
    assert (event["source"], event["spike"], event["horizon_steps"]) == ("train", 2.0, 1)


def test_a_probe_that_the_checkpoint_does_not_know_starts_with_the_next_update() -> None:
    without = SpikeWatch(spike_meter("train"))
    without.after_step(1, 5.0)
    watch = SpikeWatch(spike_meter("train"), spike_meter("probe"), lambda: 1.0)
    watch.load_state_dict(without.state_dict(), same_probe=True)
    assert watch.probe is not None
    assert not watch.probe.open
    assert watch.topology_moved(1, 1.0) == []
    assert watch.probe.open
    again = SpikeWatch(spike_meter("train"), spike_meter("probe"), lambda: 1.0)
    again.load_state_dict(watch.state_dict(), same_probe=True)
    assert again.probe is not None
    assert again.probe.open


def test_an_open_window_of_another_probe_batch_is_not_gone_on_with() -> None:
    """Its baseline and peak would be losses of different texts."""
    watch = SpikeWatch(spike_meter("train"), spike_meter("probe"), lambda: 1.0)
    watch.after_step(1, 5.0)
    watch.topology_moved(1, watch.probe_baseline())
    for same_probe in (True, False):
        again = SpikeWatch(spike_meter("train"), spike_meter("probe"), lambda: 9.0)
        again.load_state_dict(watch.state_dict(), same_probe=same_probe)
        assert again.probe is not None
        assert (again.train.open, again.probe.open) == (True, same_probe)
