"""AdamW with a local step for every weight: the optimizer of SMET (arXiv 2606.00888, section 3).

For an active weight whose local step t counts from 1 at its first update:

    m <- b1 m + (1 - b1) g            v <- b2 v + (1 - b2) g^2
    m_hat = m / (1 - b1^t)            v_hat = v / (1 - b2^t)
    w = min(1, t / W) if the weight was regrown, else 1
    theta <- theta - lr * lr_scale * (w * m_hat / (sqrt(v_hat) + eps) + weight_decay * theta)

With ``local_step=False`` t is the number of steps the parameter has taken, shared by all its weights, and with W = 0
w is 1: both together are plain AdamW, the naive regrowth that makes the loss spike.

All weights grown in one topology update share their age, so an age is a small integer: the number of topology updates
since the weight was grown, from which a table gives its local step. Ages end where they no longer matter: at the update
from which both factors are 1 in the moments' precision (at the default betas and in fp32 after 16,000 steps or so), or
at the 255th, whichever is later. So one byte a slot is exact from an interval of 63 on. At shorter ones more weights of
different ages are alive than a byte can tell apart, and an age is two bytes, from the beginning where the schedule is
known, and otherwise from the 256th update on.
"""

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smet_train.errors import CheckpointError, ConfigError
from smet_train.optim.fp8 import EXPONENT, LEAST_VALUES, Fp8, moment
from smet_train.optim.update import update
from smet_train.sparse.sampling import key_from, stream_key
from smet_train.sparse.shards import Gather, first_element, local, part_of, whole, whole_shape

MAX_AGE = 255  # updates that one byte counts
_AGE_DTYPES = (torch.uint8, torch.int16, torch.int32)
_MOST_UPDATES = 1 << 24  # that are told apart
_KEPT_TABLES = 8  # more than there are kinds of parameters in one step


def _moment_dtype(parameter: Tensor) -> torch.dtype:
    """Moments are never in bf16, where 0.999 v rounds back to v and never decays."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


class SmetAdamW(torch.optim.Optimizer):
    """AdamW with local steps, regrowth warm-up and a learning rate scale per group.

    Group keys beside those of AdamW: ``lr_scale`` (factor on lr, from the density rule), ``local_step``,
    ``regrow_warmup_steps`` (W), ``topology_moves`` (whether weights of this group are ever regrown: keeps ages),
    ``topology_interval`` and ``topology_updates`` (steps between updates and how many there will be; 0 = not known).
    State is made when the optimizer is built, but for frozen parameters, which get theirs with their first gradient,
    should they be unfrozen: ``exp_avg`` and ``exp_avg_sq`` in fp32 (fp64 for fp64 parameters), shaped
    like the parameter, or with ``moments="fp8"`` in 8 bits beside the exponents of :mod:`smet_train.optim.fp8`, but for
    parameters of less than 4096 values or in fp64; ``age`` (uint8 or wider, one a slot) where needed; ``step`` (updates
    of this parameter) and ``moved_steps`` (how many there were at the latest topology updates, newest first) as plain
    integers.
    Parameters in bf16, and moments in 8 bits, are rounded stochastically, from a key of (seed, position in the groups,
    step), so that updates smaller than their spacing are not lost; of a parameter that is split over processes, each
    rounds its part of a parameter in bf16 as one would that had all of it. ``moments`` is a group key too.

    Attributes:
        names: of parameters, for messages; those without one are called by their position.

    Raises:
        ConfigError: if lr, eps, a beta, weight_decay or regrow_warmup_steps is out of range, or moments unknown.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        lr_scale: float = 1.0,
        local_step: bool = True,
        regrow_warmup_steps: int = 100,
        topology_moves: bool = False,
        topology_interval: int = 0,
        topology_updates: int = 0,
        moments: str = "fp32",
        seed: int = 0,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or regrow_warmup_steps < 0:
            raise ConfigError(
                "optimizer.lr, eps, weight_decay and regrow_warmup_steps must be at least 0, got "
                f"lr={lr}, eps={eps}, weight_decay={weight_decay}, regrow_warmup_steps={regrow_warmup_steps}"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"optimizer.betas must be two numbers in [0, 1), got {list(betas)}")
        if moments not in ("fp32", "fp8"):
            raise ConfigError(f"optimizer.moments must be fp32 or fp8, got {moments}")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "lr_scale": lr_scale,
            "local_step": local_step,
            "regrow_warmup_steps": regrow_warmup_steps,
            "topology_moves": topology_moves,
            "topology_interval": topology_interval,
            "topology_updates": topology_updates,
            "moments": moments,
        }
        self.seed = seed
        self.names: dict[Tensor, str] = {}
        self._tables: dict[tuple[Any, ...], Tensor] = {}
        self._places: dict[Tensor, tuple[dict[str, Any], str]] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take over further parameters, and make their state."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if parameter.requires_grad:
                self._make_state(parameter, group)
        self._find_places()

    def _find_places(self) -> None:
        """The group of each parameter, and the key of its stream of random numbers."""
        for number, group in enumerate(self.param_groups):
            for position, parameter in enumerate(group["params"]):
                self._places[parameter] = group, f"{number}.{position}"

    def _make_state(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        dtype = _moment_dtype(parameter)
        state = self.state[parameter]
        state["step"] = 0
        held = local(parameter.detach())
        in_8_bits = group["moments"] == "fp8" and dtype == torch.float32 and held.numel() >= LEAST_VALUES
        for key in ("exp_avg", "exp_avg_sq"):
            if in_8_bits:
                zeros = Fp8.zeros(held, signed=key == "exp_avg")
                state[key], state[key + EXPONENT] = zeros.codes, zeros.exponents
            else:
                state[key] = torch.zeros_like(held, dtype=dtype)
        if group["topology_moves"]:
            slots = [held.shape[0], *[1] * (held.dim() - 1)]  # one age for all values of a block
            state["age"] = torch.zeros(slots, dtype=age_dtype(updates_counted(group, dtype)), device=held.device)
            state["moved_steps"] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: as of any torch optimizer, what computes the loss and its gradients before the update.

        Returns:
            What ``closure`` returns; None without it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter in self._places:
            if parameter.grad is not None:
                self.step_one(parameter)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "seed": self.seed, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # also of a part of it, by torch's load_state_dict
        self._tables, self._places = {}, {}
        self._find_places()

    @torch.no_grad()
    def step_one(self, parameter: Tensor) -> None:
        """The update of one parameter that has a gradient: a part of :meth:`step`."""
        group, stream = self._places[parameter]
        state = self.state[parameter]
        if not state:  # it was frozen when the optimizer was built
            self._make_state(parameter, group)
        state["step"] += 1
        assert parameter.grad is not None
        beta1, beta2 = group["betas"]
        lr = group["lr"] * group["lr_scale"]
        m, v = moment(state, "exp_avg"), moment(state, "exp_avg_sq")
        table = self._table(state, group, _moment_dtype(parameter))
        key = 0
        if parameter.dtype == torch.bfloat16 or isinstance(m, Fp8):
            key = stream_key(self.seed, stream, state["step"], "stochastic rounding")
        update(
            local(parameter),
            local(parameter.grad),
            m,
            v,
            state["age"] if len(table) > 1 else None,
            table,
            (1 - beta1, beta2, 1 - beta2, group["eps"], -lr, -lr * group["weight_decay"]),
            key_from(key, first_element(parameter)),
        )

    def _table(self, state: dict[str, Any], group: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
        """``factor_table`` of a parameter, (ages, 2): made once for all that have moved and stepped together."""
        moved = tuple(state["moved_steps"]) if "age" in state else None
        settings = tuple(group["betas"]), group["local_step"], group["regrow_warmup_steps"]
        key = state["step"], moved, settings, dtype
        if key not in self._tables:
            if len(self._tables) >= _KEPT_TABLES:
                self._tables.clear()
            self._tables[key] = torch.tensor(factor_table(state["step"], moved, group), dtype=dtype)
        return self._tables[key]

    @contextmanager
    def taking_place(self, values: Tensor, parameter: Tensor) -> Iterator[None]:
        """Inside, ``values`` is of the group of ``parameter``, for a topology update; its state is its own."""
        self._places[values] = self._places[parameter]
        try:
            yield
        finally:
            del self._places[values]

    @torch.no_grad()
    def note_topology_update(self, parameter: nn.Parameter) -> None:
        """Age every slot by one update; call it before the slots are moved, so that grown ones start at age 0.

        Local steps count updates of the parameter, which misses those steps that leave it without a gradient.
        """
        state, group = self.state[parameter], self._places[parameter][0]
        if "age" in state:
            moved = [state["step"], *state["moved_steps"]]
            settled = settled_steps(group, _moment_dtype(parameter))
            while len(moved) > MAX_AGE and state["step"] - moved[-1] >= settled:
                moved.pop()
            state["moved_steps"] = moved
            state["age"] = _widened(state["age"], age_dtype(len(moved)))
            state["age"].clamp_(max=len(moved) - 1).add_(1)

    def state_for_checkpoint(
        self, names: Mapping[Tensor, str], gather: Gather = whole
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values), keyed ``<parameter name>.<state>`` and ``<parameter name>``; nothing is cast.

        What is split over processes is made whole by ``gather``.

        ``torch.optim.Optimizer.load_state_dict`` casts state to the parameter's dtype, which would ruin ages and fp32
        moments of bf16 parameters; hence this pair.
        """
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for parameter, state in self._states().items():
            name = names[parameter]
            held = {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            tensors.update({key: gather(value, parameter) for key, value in held.items()})
            plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            if "moved_steps" in state:
                plain[name]["moved_steps"] = in_runs(state["moved_steps"])
        return tensors, plain

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any torch optimizer, but verbatim: torch's own casts ages and fp32 moments to the parameter's dtype.

        State is put on its parameter's device.

        Raises:
            CheckpointError: if a state is missing, left over, or of another shape or dtype.
        """
        held = self.state
        super().load_state_dict({**state_dict, "state": {}})
        self.state = held
        self._find_places()  # the groups are new dictionaries
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        names = {parameter: self.names.get(parameter, str(place)) for place, parameter in enumerate(parameters)}
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        saved = {
            names[parameter]: state_dict["state"].get(number, {})
            for parameter, number in zip(parameters, numbers, strict=True)
        }
        for parameter in parameters:
            state = held[parameter]
            state.update({k: v.to(parameter.device) for k, v in state.items() if isinstance(v, Tensor)})
        self.restore(
            names,
            {f"{name}.{k}": v for name, state in saved.items() for k, v in state.items() if isinstance(v, Tensor)},
            {name: {k: v for k, v in state.items() if not isinstance(v, Tensor)} for name, state in saved.items()},
        )

    @torch.no_grad()
    def restore(self, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Copy a checkpointed state back in place, verbatim; of what is split over processes, this one's part.

        Raises:
            CheckpointError: if a state is missing, left over, or of another shape or dtype.
        """
        plain = {name: held for name, held in plain.items() if held}
        for parameter, (group, _) in self._places.items():  # what was frozen there, or is here
            if not self.state[parameter] and names[parameter] in plain:
                self._make_state(parameter, group)
            elif not parameter.requires_grad and names[parameter] not in plain:
                self.state[parameter] = {}
        states = self._states()
        expected = {
            f"{names[parameter]}.{key}": (value, parameter)
            for parameter, state in states.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        if expected.keys() != tensors.keys() or {names[p] for p in states} != plain.keys():
            odd = sorted(expected.keys() ^ tensors.keys()) or sorted({names[p] for p in states} ^ plain.keys())
            raise CheckpointError(
                f"the checkpoint's optimizer state is not this optimizer's: {odd[0]} is on one side only; resume with "
                "the method and optimizer settings that the run was started with"
            )
        for key, (target, parameter) in expected.items():
            shape = whole_shape(target, parameter)
            saved = tensors[key].dtype
            if key.endswith(".age") and saved in _AGE_DTYPES:  # the wider of both holds either
                target = self.state[parameter]["age"] = _widened(target, saved)
                saved = target.dtype
            if shape != tensors[key].shape or target.dtype != saved:
                raise CheckpointError(
                    f"the checkpoint's {key} is {tuple(tensors[key].shape)} of {tensors[key].dtype}, this run needs "
                    f"{tuple(shape)} of {target.dtype}"
                )
            target.copy_(part_of(tensors[key], parameter))
        for parameter, state in states.items():
            state.update(plain[names[parameter]])
            if "moved_steps" in state:
                state["moved_steps"] = out_of_runs(state["moved_steps"])

    def _states(self) -> dict[Tensor, dict[str, Any]]:
        """The state of each parameter that has one."""
        return {parameter: state for parameter, state in self.state.items() if state}


def age_dtype(updates: int) -> torch.dtype:
    """The narrowest dtype whose numbers count ``updates``."""
    return next(dtype for dtype in _AGE_DTYPES if updates <= torch.iinfo(dtype).max)


def _widened(ages: Tensor, dtype: torch.dtype) -> Tensor:
    """``ages`` in the wider of their own dtype and ``dtype``; themselves, if that is their own."""
    return ages.to(dtype) if dtype.itemsize > ages.dtype.itemsize else ages


def in_runs(steps: Sequence[int]) -> list[list[int]]:
    """``steps`` as [first, difference, count] of evenly spaced stretches: a few, where there may be thousands."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and runs[-1][2] == 1:
            runs[-1] = [runs[-1][0], step - runs[-1][0], 2]
        elif runs and step == runs[-1][0] + runs[-1][1] * runs[-1][2]:
            runs[-1][2] += 1
        else:
            runs.append([step, 0, 1])
    return runs


def out_of_runs(runs: Sequence[Any]) -> list[int]:
    """What :func:`in_runs` was given; the steps themselves, as earlier versions wrote them, are taken as they are.

    Raises:
        CheckpointError: if it is neither.
    """
    runs = [run if isinstance(run, list) else [run, 0, 1] for run in runs]
    if not all(len(run) == 3 and all(isinstance(number, int) for number in run) for run in runs) or (
        sum(run[2] for run in runs) > _MOST_UPDATES
    ):
        raise CheckpointError(f"the checkpoint's moved_steps are {str(runs)[:80]}, which are no steps of updates")
    return [first + difference * place for first, difference, count in runs for place in range(count)]


def settled_steps(group: Mapping[str, Any], dtype: torch.dtype) -> int:
    """The local step from which on age makes no difference any more: where both of ``age_factors`` are 1 in ``dtype``;
    with ``local_step=False``, where the warm-up is over."""
    if not group["local_step"]:
        return int(group["regrow_warmup_steps"])
    return _settled_steps(tuple(group["betas"]), int(group["regrow_warmup_steps"]), dtype)


@functools.cache
def _settled_steps(betas: tuple[float, float], warmup_steps: int, dtype: torch.dtype) -> int:
    group = {"betas": betas, "regrow_warmup_steps": warmup_steps}

    eps = torch.finfo(dtype).eps

    def is_settled(t: int) -> bool:
        return all(1 - eps / 4 <= factor <= 1 + eps / 2 for factor in age_factors(t, False, group))  # they round to 1

    least = most = max(1, warmup_steps)
    while not is_settled(most):
        most *= 2
    return bisect_left(range(most), True, lo=least, key=is_settled)


def updates_counted(group: Mapping[str, Any], dtype: torch.dtype) -> int:
    """How many updates an age of ``group`` comes to count: until it is settled, or the run ends; 0 if its
    ``topology_interval`` is not known."""
    interval = group.get("topology_interval", 0)  # groups that an earlier version saved have none
    return min(group["topology_updates"], -(-settled_steps(group, dtype) // interval)) if interval else 0


def _warmup(t: float, first: bool, group: Mapping[str, Any]) -> float:
    warmup_steps = group["regrow_warmup_steps"]
    return 1.0 if first or warmup_steps == 0 else min(1.0, t / warmup_steps)


def age_factors(t: float, first: bool, group: Mapping[str, Any]) -> tuple[float, float]:
    """w / (1 - b1^t) and (1 - b2^t)^-1/2 of a weight at local step ``t``; ``first``: it is of the first topology."""
    beta1, beta2 = group["betas"]
    return _warmup(t, first, group) / (1 - beta1**t), (1 - beta2**t) ** -0.5


def factor_table(step: int, moved_steps: Sequence[int] | None, group: Mapping[str, Any]) -> list[tuple[float, float]]:
    """``age_factors`` for each age; one pair alone where all weights share it, or where there are no ages (None)."""
    shared = age_factors(step, True, group)
    if moved_steps is None:
        return [shared]
    steps = local_steps(step, moved_steps)
    if group["local_step"]:
        table = [age_factors(t, first, group) for t, first in steps]
    else:  # warm-up counts local steps, the moments' corrections the shared one
        table = [(shared[0] * _warmup(t, first, group), shared[1]) for t, first in steps]
    return table if len(set(table)) > 1 else table[:1]


def local_steps(step: int, moved_steps: Sequence[int]) -> list[tuple[int, bool]]:
    """For every age from 0 on: the local step at a parameter's ``step`` and whether it is the first topology's age.

    ``moved_steps`` are its steps after which the topology moved, newest first. A weight of age a was grown after
    ``moved_steps[a]``. An age of ``len(moved_steps)`` is that of the first topology, which it shares with weights that
    are as settled as those.
    """
    return [*((step - moved, False) for moved in moved_steps), (step, True)]
