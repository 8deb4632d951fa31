"""The orthogonal choices of a topology update, built in or registered; a method is a preset over them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from smet_train.errors import ConfigError
from smet_train.sparse.linear import SparseLinear
from smet_train.topology.scores import magnitude, magnitude_and_gradient, soft_magnitude
from smet_train.topology.select import grow_random


@dataclass(frozen=True, slots=True)
class MoveRules:
    """What is dropped, what is grown, and how a grown weight starts.

    Args:
        drop: ``magnitude``, ``soft_magnitude`` (sampled), ``magnitude_and_gradient`` (MEST), or a registered name.
        grow: ``random``, ``gradient`` (largest mean |dL/dW| among the inactive sites), a registered name, or
            ``nothing``: layers start dense and are pruned gradually.
        drop_temperature: of ``soft_magnitude``; towards 0 it becomes ``magnitude``.
        drop_gradient_weight: of |dL/dtheta| in ``magnitude_and_gradient``.
        keep_moments: a grown weight takes over the moments of a dropped one instead of starting from zero.

    Raises:
        ConfigError: for a name that is not there, or for pruning by a score that needs gradients.
    """

    drop: str = "magnitude"
    grow: str = "random"
    drop_temperature: float = 0.25
    drop_gradient_weight: float = 1.0
    keep_moments: bool = False

    def __post_init__(self) -> None:
        for key, name, known in (("drop", self.drop, DROPS), ("grow", self.grow, GROWS)):
            if name not in known:
                raise ConfigError(f"topology.{key}={name} is unknown; write one of {', '.join(known)}")
        if self.prunes and self.scores_gradient:
            raise ConfigError(f"topology.drop={self.drop} looks at gradients, which topology.grow=nothing has not")

    @property
    def prunes(self) -> bool:
        """Whether the number of active values falls over the run, instead of staying what it is."""
        return self.grow == "nothing"

    @property
    def needs_gradient(self) -> bool:
        """Whether an update looks at gradients, so that it needs batches."""
        return self.grow == "gradient" or self.scores_gradient

    @property
    def scores_gradient(self) -> bool:
        """Whether what is dropped depends on the gradients of the active values."""
        return DROPS[self.drop].needs_gradient


@dataclass(frozen=True, slots=True)
class Question:
    """One layer at one topology update, as a rule is asked about it; to be looked at, not to be changed.

    Attributes:
        name: of the layer.
        layer: with its ``values`` (K,) or (G, b, b), its ``index`` (K,) and its ``layout``.
        step: after which the topology moves.
        key: for randomness that is the same on every process and when resumed, see :mod:`smet_train.sparse.sampling`.
        rules: the settings.
        gradient: mean gradient of the values, shaped like them, where the drop rule asked for it.
    """

    name: str
    layer: SparseLinear
    step: int
    key: int
    rules: MoveRules
    gradient: Tensor | None = None


Score = Callable[[Question], Tensor]  # one number a slot, (K,); the least are dropped
Grow = Callable[[Question, int], Tensor]  # so many distinct inactive sites, in any order


@dataclass(frozen=True, slots=True)
class Drop:
    """How active weights are scored, and whether for that their gradients are needed."""

    score: Score
    needs_gradient: bool = False


def _magnitude_and_gradient(question: Question) -> Tensor:
    assert question.gradient is not None
    return magnitude_and_gradient(question.layer.values, question.gradient, question.rules.drop_gradient_weight)


def _elsewhere(question: Question, n_grow: int) -> Tensor:  # noqa: ARG001
    raise AssertionError("the updater grows by gradient itself, and nothing where it prunes")


DROPS: dict[str, Drop] = {
    "magnitude": Drop(lambda asked: magnitude(asked.layer.values)),
    "soft_magnitude": Drop(lambda asked: soft_magnitude(asked.layer.values, asked.rules.drop_temperature, asked.key)),
    "magnitude_and_gradient": Drop(_magnitude_and_gradient, needs_gradient=True),
}
GROWS: dict[str, Grow] = {
    "random": lambda asked, n: grow_random(asked.layer.index, n, asked.layer.layout.sites, asked.key),
    "gradient": _elsewhere,
    "nothing": _elsewhere,
}


def register_drop(name: str, score: Score, *, needs_gradient: bool = False) -> None:
    """Let ``topology.drop`` name a rule of your own: ``score`` gives a number a slot, and the least are dropped.

    Args:
        needs_gradient: ``question.gradient`` is given; an update then costs another backward pass.

    Raises:
        ConfigError: if the name is taken.
    """
    _refuse_taken("topology.drop", name, DROPS)
    DROPS[name] = Drop(score, needs_gradient)


def register_grow(name: str, choose: Grow) -> None:
    """Let ``topology.grow`` name a rule of your own: ``choose(question, n)`` gives n distinct inactive sites.

    Raises:
        ConfigError: if the name is taken.
    """
    _refuse_taken("topology.grow", name, GROWS)
    GROWS[name] = choose


def _refuse_taken(key: str, name: str, known: dict[str, Drop] | dict[str, Grow]) -> None:
    if name in known:
        raise ConfigError(f"there is a rule {key}={name} already; give yours another name")


def scores(question: Question) -> Tensor:
    """The drop rule's answer.

    Raises:
        ConfigError: if it is not one number a slot.
    """
    name, n = question.rules.drop, question.layer.layout.n_active
    scored = DROPS[name].score(question).detach()
    if scored.shape != (n,) or bool(scored.isnan().any()):
        raise ConfigError(
            f"topology.drop={name} must give one number for each of the {n} slots of layer {question.name}, not "
            f"{tuple(scored.shape)}{' with NaN in it' if scored.is_floating_point() and scored.isnan().any() else ''}"
        )
    return scored


def grown_sites(question: Question, n_grow: int) -> Tensor:
    """The grow rule's answer, ascending.

    Raises:
        ConfigError: if it is not ``n_grow`` distinct inactive sites.
    """
    name, layer = question.rules.grow, question.layer
    sites = GROWS[name](question, n_grow).sort().values
    index_K = layer.index
    inside = sites.numel() == 0 or 0 <= int(sites[0]) <= int(sites[-1]) < layer.layout.sites
    if sites.shape != (n_grow,) or not inside or bool((sites[1:] == sites[:-1]).any()) or bool(_held(sites, index_K)):
        raise ConfigError(
            f"topology.grow={name} must give {n_grow} distinct inactive sites of the {layer.layout.sites} of layer "
            f"{question.name}, and has not"
        )
    return sites.to(index_K.dtype)


def _held(sites: Tensor, index_K: Tensor) -> Tensor:
    """Whether any of ``sites`` is in the ascending ``index_K``."""
    sites = sites.to(index_K.dtype)
    places = torch.searchsorted(index_K, sites).clamp_(max=index_K.numel() - 1)
    return (index_K[places] == sites).any()
