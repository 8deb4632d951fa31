"""The whole state of a run as a snapshot, and back, bit for bit."""

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from smet_train import __version__, opening
from smet_train.errors import CheckpointError
from smet_train.sparse.index import check_packed
from smet_train.sparse.ledger import sparse_layers
from smet_train.sparse.shards import as_split, local, part_of, whole
from smet_train.train.run import Run, TrainState
from smet_train.train.snapshot import Snapshot


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once, sharing memory with the model."""
    once = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


@torch.no_grad()
def restore_model(model: nn.Module, saved: dict[str, Tensor] | Any) -> None:
    """Copy saved tensors into the model in place; of what is split over processes, this one's part.

    Raises:
        CheckpointError: if a tensor is missing, left over, or of another shape or dtype.
        LayoutError: if a saved index breaks an invariant of its layer.
    """
    held = model_tensors(model)
    if held.keys() != saved.keys():
        odd = sorted(held.keys() ^ saved.keys())[0]
        raise CheckpointError(
            f"the checkpoint is of another model: {odd} is on one side only; resume with the model and sparsity "
            "settings that the run was started with"
        )
    for name, tensor in held.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {tuple(saved[name].shape)} of {saved[name].dtype} "
                f"there, {tuple(tensor.shape)} of {tensor.dtype} here"
            )
        local(tensor).copy_(part_of(saved[name], tensor))
    for name, layer in sparse_layers(model).items():
        packed = saved[f"{name}.packed_index"]  # which may be read in parts
        check_packed(whole(local(packed), packed), layer.layout)
        layer.topology_changed()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """torch's generator states; dropout is the only part of a run that draws from them."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: dict[str, Tensor] | Any, device: torch.device) -> None:
    """Continue the generators; a checkpoint from a machine without a GPU leaves the GPU's generator as seeded.

    Raises:
        ValueError: if a state is none.
    """
    try:
        torch.set_rng_state(states["cpu"])
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except RuntimeError as error:
        raise ValueError(f"the state of the random generator is none: {error}") from error


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def held_tensors(run: Run) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Every tensor that decides how ``run`` goes on, sharing memory with it, and the optimizer's plain values. What is
    split over the processes is a DTensor."""
    optimizer_tensors, optimizer_plain = run.optimizer.state_for_checkpoint(_names(run.model), as_split)
    tensors = {
        "model": model_tensors(run.model),
        "optimizer": optimizer_tensors,
        "random": random_state(run.device),
        "topology": run.topology.tensors(),
    }
    return tensors, optimizer_plain


def capture(run: Run) -> Snapshot:
    """Everything that decides how ``run`` goes on. The tensors share memory with the run: write them before the next
    step."""
    tensors, optimizer_plain = held_tensors(run)
    return Snapshot(
        tensors=tensors,
        plain={
            "version": __version__,
            **asdict(run.state),
            "guard": run.guard.state_dict(),
            "optimizer": optimizer_plain,
            "topology": run.topology.state_dict(),
            "data": run.batches.state_dict(),
            "spikes": run.spikes.state_dict(),
            "metrics_bytes": run.metrics.position(),
            "config": run.config,
            "backends": {name: layer.backend.name for name, layer in sparse_layers(run.model).items()},
        },
    )


def _like(run: Run) -> dict[str, Any]:
    """Of what kinds the plain values of a checkpoint of ``run`` are."""
    return {
        **asdict(run.state),
        "optimizer": {
            name: {key: value for key, value in run.optimizer.state[parameter].items() if not isinstance(value, Tensor)}
            for parameter, name in _names(run.model).items()
            if parameter in run.optimizer.state
        },
        "guard": run.guard.state_dict(),
        "topology": run.topology.state_dict(),
        "data": run.batches.state_dict(),
        "spikes": run.spikes.state_dict(),
        "metrics_bytes": 0,
        "config": run.config,
        "backends": {},
    }


def restore(run: Run, snapshot: Snapshot, *, same_folder: bool) -> None:
    """Put ``run`` where ``snapshot`` was taken; with ``same_folder`` cut its metrics back to that moment too.

    Raises:
        CheckpointError: if the snapshot lacks something or is of another model or optimizer.
        DataError: if the data source or the tokenizer has changed.
    """
    plain = snapshot.plain
    with opening.malformed("the checkpoint", CheckpointError, "resume from another checkpoint"):
        opening.require_alike(plain, _like(run), "state.json")
        saved = snapshot.tensors["model"]
        run.topology.fit({name: saved[f"{name}.values"].shape[0] for name in run.topology.layers})
        if run.topology.rules.prunes:
            run.loss.renew()
        restore_model(run.model, saved)
        run.optimizer.restore(_names(run.model), snapshot.tensors["optimizer"], plain["optimizer"])
        restore_random_state(snapshot.tensors["random"], run.device)
        run.topology.load_state_dict(plain["topology"], snapshot.tensors["topology"])
        run.batches.load_state_dict(plain["data"])
        same_probe = plain["config"]["tracking"]["probe_windows"] == run.config["tracking"]["probe_windows"]
        run.spikes.load_state_dict(plain["spikes"], same_probe=same_probe)
        run.guard.load_state_dict(plain["guard"])
        run.state = TrainState(**{item.name: plain[item.name] for item in fields(TrainState)})
        run.fresh = False
        if plain["metrics_bytes"] < 0:
            raise ValueError("metrics_bytes is negative")
        if same_folder:
            run.metrics.truncate(plain["metrics_bytes"])
