"""A folder that holds a model's active values alone, as ``smet-export --format sparse`` writes it, read back.

docs/formats.md describes it for readers without smet-train.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from smet_train import opening
from smet_train.errors import CheckpointError, LayoutError
from smet_train.models.architecture import without_code
from smet_train.models.config_file import read_architecture
from smet_train.sparse import Layout, SparseLinear
from smet_train.sparse.index_coding import decode_sites

FORMAT, VERSION = "smet-sparse", 1
DESCRIPTION, TENSORS, ARCHITECTURE = "sparse.json", "model.safetensors", "transformers_config.json"


@dataclass(frozen=True, slots=True)
class SparseDescription:
    """What a sparse folder says beside its tensors.

    Attributes:
        layers: layout of each sparse layer, by its name in the model.
        transposed: names of the layers whose dense weight transformers stores as (in, out).
        architecture: content of the transformers ``config.json``.
    """

    layers: dict[str, Layout]
    transposed: frozenset[str]
    architecture: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Content of sparse.json."""
        layers = {
            name: {
                "shape": [layout.out_features, layout.in_features],
                "block": layout.block,
                "n_active": layout.n_active,
                "density": layout.density,
                "transposed": name in self.transposed,
            }
            for name, layout in self.layers.items()
        }
        return {"format": FORMAT, "version": VERSION, "layers": layers}


def is_sparse_folder(folder: Path) -> bool:
    """Whether ``folder`` is what this module reads."""
    return (folder / DESCRIPTION).is_file()


def read_description(folder: Path) -> SparseDescription:
    """What the folder says of its layers and its architecture.

    Raises:
        CheckpointError: if ``folder`` is no sparse folder, or is damaged.
    """
    if not is_sparse_folder(folder):
        raise CheckpointError(
            f"{folder} is no sparse folder: it has no {DESCRIPTION}; give one that smet-export --format sparse wrote"
        )
    try:
        content = opening.read_object(folder / DESCRIPTION)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            told = f"{str(content['format'])[:80]} {str(content['version'])[:80]}"
            raise CheckpointError(
                f"{folder / DESCRIPTION} is {told}, this version of smet-train reads {FORMAT} {VERSION}"
            )
        layers = {name: _layout(layer) for name, layer in content["layers"].items()}
        transposed = frozenset(name for name, layer in content["layers"].items() if layer["transposed"])
        architecture = opening.read_object(folder / ARCHITECTURE)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, LayoutError) as error:
        raise CheckpointError(f"{folder} can't be used: {opening.what(error)}; export it again") from error
    return SparseDescription(layers, transposed, architecture)


def _layout(layer: Any) -> Layout:
    numbers = [*layer["shape"], layer["n_active"], layer["block"]]
    if any(type(number) is not int for number in numbers):
        raise TypeError(f"{str(numbers)[:80]} are no whole numbers")
    return Layout(*numbers)


def read_sparse_tensors(folder: Path) -> tuple[dict[str, Tensor], SparseDescription]:
    """All tensors of a sparse folder, on the CPU, and what it says of them.

    Of a sparse layer these are ``<layer>.values``, (K,) or (G, b, b), ``<layer>.index``, its active sites, ascending,
    (K,) or (G,), and ``<layer>.bias`` (O,) where it has one. All others have the names that transformers gives them;
    a tied weight is there once.

    Raises:
        CheckpointError: if ``folder`` is no sparse folder, or is damaged; the message says what is.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        opening.require_regular(folder / TENSORS)
        tensors = load_file(folder / TENSORS)
        for name, layout in description.layers.items():
            tensors[f"{name}.index"] = decode_sites(tensors[f"{name}.index"], layout)
            held = tuple(tensors[f"{name}.values"].shape)
            if held != layout.values_shape:
                raise LayoutError(f"{name}.values has the shape {held}, not {layout.values_shape}")
    except (OSError, SafetensorError, KeyError, LayoutError) as error:
        raise CheckpointError(f"{folder / TENSORS} can't be used: {opening.what(error)}; export it again") from error
    return tensors, description


def read_sparse(folder: Path, *, backend: str = "densify") -> PreTrainedModel:
    """The model of a sparse folder with :class:`SparseLinear` layers, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: if ``folder`` is no sparse folder, is damaged, or does not hold all of its architecture.
        BackendError: if ``backend`` can't compute its layers.
    """
    folder = Path(folder)
    _check_architecture(folder)
    tensors, description = read_sparse_tensors(folder)
    model = empty_model(description.architecture)
    for name, layout in description.layers.items():
        index, values = tensors.pop(f"{name}.index"), tensors.pop(f"{name}.values")
        layer = SparseLinear(layout, index, values, tensors.pop(f"{name}.bias", None), backend)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    ready = {f"{name}.{key}" for name in description.layers for key in ("values", "packed_index", "bias")}
    left = fill(model, tensors, ready)
    if left:
        raise CheckpointError(f"{folder / TENSORS} can't be used: {left} is on one side only; export it again")
    return model.eval()


def _check_architecture(folder: Path) -> None:
    """See that a model of the folder's architecture has no other tensors than the folder, by their shapes alone: before
    there is memory for one.

    Raises:
        CheckpointError: if it has.
    """
    description = read_description(folder)
    try:
        opening.require_regular(folder / TENSORS)
        with safe_open(folder / TENSORS, framework="pt") as file:
            held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} can't be used: {opening.what(error)}; export it again") from error
    with torch.device("meta"):
        model = empty_model(description.architecture)
        model.tie_weights()
    for name, layout in description.layers.items():
        transposed = name in description.transposed
        sides = (layout.in_features, layout.out_features) if transposed else (layout.out_features, layout.in_features)
        held[f"{name}.weight"] = sides
    names: dict[int, list[str]] = {}  # a tied one has several, of which one is held
    shapes: dict[int, tuple[int, ...]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
        shapes[id(tensor)] = tuple(tensor.shape)
    for parameter, shape in shapes.items():
        name = next((name for name in names[parameter] if name in held), names[parameter][0])
        stored = held.get(name)
        if stored != shape:
            differs = "is on one side only" if stored is None else f"is {stored}, and {shape} by {ARCHITECTURE}"
            raise CheckpointError(f"{folder / TENSORS} can't be used: {name} {differs}; export it again")


def empty_model(architecture: dict[str, Any]) -> PreTrainedModel:
    """A model of a transformers ``config.json`` whose parameters are not set, but whose other buffers are.

    Raises:
        CheckpointError: if transformers can't build a causal language model from it.
    """
    try:
        config = read_architecture(without_code(architecture, ARCHITECTURE)).config
        with no_init_weights():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # Every architecture checks its settings in its own way, with its own exception types.
        raise CheckpointError(f"{ARCHITECTURE}: transformers can't build it ({opening.what(error)})") from error


def fill(model: PreTrainedModel, tensors: dict[str, Tensor], ready: set[str]) -> str | None:
    """Give ``model`` its ``tensors``, of which tied ones are there once; ``ready`` has what it holds already.

    Returns:
        The name of a tensor that only one of both has; None if there is none.
    """
    found = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    held = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(held[name]) for name in tensors if name in held}
    missing = [
        name for name in found.missing_keys if name not in ready and (name not in held or id(held[name]) not in filled)
    ]
    return next(iter([*found.unexpected_keys, *missing]), None)
