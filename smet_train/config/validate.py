"""Checks that need no model and no data. Each error names the key, its value, what is allowed and what to write."""

from collections.abc import Iterable
from typing import Any

from smet_train.config.densities import parse_densities
from smet_train.config.fields import Leaf, leaves, spell, value_at
from smet_train.config.plugins import added
from smet_train.config.schema import (
    Config,
    DataConfig,
    DataSource,
    Drop,
    Family,
    Grow,
    ModelConfig,
    RegrowMoments,
    TrackingConfig,
)
from smet_train.config.sharded import check_sharded
from smet_train.config.unread import IN_CONFIG_FILE
from smet_train.errors import ConfigError
from smet_train.layer_names import PROJECTIONS, check_density_patterns, chosen_names, names_of

FILE_SOURCES = (DataSource.text, DataSource.jsonl, DataSource.parquet)
# Settings of some sources only: a value that nothing would read is a mistake about which data are trained on.
_READ_BY = {
    "files": FILE_SOURCES,
    "name": (DataSource.hub,),
    "subset": (DataSource.hub,),
    "split": (DataSource.hub,),
    "text_field": (DataSource.jsonl, DataSource.parquet, DataSource.hub),
    "text_unit": (DataSource.text,),
}
_NOT_IN_WANDB_PROJECTS = "/\\#?%:"
_LONGEST_WANDB_PROJECT = 128
_LONGEST_WANDB_TAG = 64
_LISTED = 12  # divisors named in a message


def validate(config: Config) -> None:
    """Check ranges, and settings that must agree with each other.

    Raises:
        ConfigError: at the first setting that can't be used.
    """
    for leaf in leaves(Config()):
        _check_text(leaf, value_at(config, leaf.key))
        check_range(leaf, value_at(config, leaf.key))
    _check_betas(config.optimizer.betas)
    _check_batch(config.train.batch_size, config.train.micro_batch_size)
    check_processes(config, config.train.processes)
    check_sharded(config)
    _check_fused_step(config)
    _check_topology(config)
    _check_drop_fractions(config.topology.drop_fraction, config.topology.final_drop_fraction)
    if config.sparsity.include == []:
        raise ConfigError(
            "sparsity.include=[] names no layer; write sparsity.include=null for all projections, or method=dense"
        )
    _check_model(config.model)
    _check_patterns(config)
    _check_data(config.data)
    _check_tracking(config.tracking)


def check_typed(config: Config, overrides: Iterable[str]) -> None:
    """Raises ConfigError if one of ``overrides`` of a command is a setting of the model that its config.json has.

    Files of settings may hold them, since experiments are shared over models.
    """
    if config.model.family is not Family.auto:
        return
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key in IN_CONFIG_FILE and value_at(config, key) != value_at(Config(), key):
            raise ConfigError(
                f"{key}={spell(value_at(config, key))} is not read with model.family=auto; leave it out and set it in "
                f"{config.model.config_file}"
            )


def check_processes(config: Config, processes: int) -> None:
    """Raises ConfigError if ``processes`` can't share a batch evenly, or can't share gradients that are freed."""
    if processes == 1:
        return
    micro_batches = config.train.batch_size // config.train.micro_batch_size
    if micro_batches % processes:
        whole = -(-micro_batches // processes) * processes * config.train.micro_batch_size
        smaller = config.train.batch_size // processes
        raise ConfigError(
            f"{processes} processes can't share the {micro_batches} micro-batches of train.batch_size="
            f"{config.train.batch_size} with train.micro_batch_size={config.train.micro_batch_size} evenly; write "
            f"train.batch_size={whole}"
            + (f" or train.micro_batch_size={smaller}" if smaller * processes == config.train.batch_size else "")
        )
    if config.train.fused_backward_step:
        raise ConfigError(
            f"train.fused_backward_step=true frees each gradient before {processes} processes have averaged it; leave "
            "it out"
        )


def _check_fused_step(config: Config) -> None:
    if not config.train.fused_backward_step:
        return
    if config.train.max_loss_rise is not None:
        raise ConfigError(
            "train.fused_backward_step=true has updated the weights before the loss is judged, so that "
            f"train.max_loss_rise={config.train.max_loss_rise:g} can't pass a batch over; leave one of them out"
        )
    if config.optimizer.grad_clip:
        raise ConfigError(
            f"train.fused_backward_step=true frees each gradient before the next is made, but optimizer.grad_clip="
            f"{config.optimizer.grad_clip:g} needs the norm of all; write optimizer.grad_clip=0"
        )
    if config.train.micro_batch_size != config.train.batch_size:
        raise ConfigError(
            "train.fused_backward_step=true updates in every backward pass, but train.batch_size="
            f"{config.train.batch_size} with train.micro_batch_size={config.train.micro_batch_size} accumulates "
            f"gradients over several; write train.micro_batch_size={config.train.batch_size}"
        )


def _check_tracking(tracking: TrackingConfig) -> None:
    """What wandb would refuse, long after the command was typed."""
    refused = sorted(set(tracking.wandb_project) & set(_NOT_IN_WANDB_PROJECTS))
    if refused or len(tracking.wandb_project) > _LONGEST_WANDB_PROJECT:
        raise ConfigError(
            f"tracking.wandb_project={spell(tracking.wandb_project)}: wandb takes at most {_LONGEST_WANDB_PROJECT} "
            f"characters and none of {_NOT_IN_WANDB_PROJECTS}; write for instance tracking.wandb_project=smet-train"
        )
    for tag in tracking.wandb_tags:
        if len(tag) > _LONGEST_WANDB_TAG:
            raise ConfigError(
                f"tracking.wandb_tags: {spell(tag)} has {len(tag)} characters, wandb takes at most "
                f"{_LONGEST_WANDB_TAG}; write a shorter tag"
            )


def _check_text(leaf: Leaf, value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and not text.strip() for text in texts):
        example = f"write for instance {leaf.key}={spell(leaf.default)}" if leaf.default else "leave it out"
        raise ConfigError(f"{leaf.key}={spell(value) or repr('')} is empty ({leaf.help}); {example}")


def check_range(leaf: Leaf, value: Any) -> None:
    """Raises ConfigError if ``value`` is outside the range of its setting."""
    if leaf.range is None or value is None:
        return
    numbers = value if isinstance(value, list) else [value]
    if not all(leaf.range.holds(number) for number in numbers):
        example = f"write for instance {leaf.key}={spell(leaf.default)}" if leaf.default is not None else "leave it out"
        raise ConfigError(
            f"{leaf.key}={spell(value)} is out of range ({leaf.help}): it must be {leaf.range.text}; {example}"
        )


def _check_betas(betas: list[float]) -> None:
    if len(betas) != 2:
        raise ConfigError(
            f"optimizer.betas={spell(betas)} must be two numbers, the decay of the first and of the second moment; "
            "write for instance optimizer.betas=[0.9,0.999]"
        )


def _check_batch(batch_size: int, micro_batch_size: int) -> None:
    if batch_size % micro_batch_size:
        divisors = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
        # The ones nearest to what was asked for.
        near = sorted(sorted(divisors, key=lambda size: abs(size - micro_batch_size))[:_LISTED])
        raise ConfigError(
            f"train.micro_batch_size={micro_batch_size} does not divide train.batch_size={batch_size}; write "
            f"train.micro_batch_size={', '.join(map(str, near[:-1]))}{' or ' if near[:-1] else ''}{near[-1]}, or "
            f"train.batch_size={(batch_size // micro_batch_size + 1) * micro_batch_size}"
        )


def _check_topology(config: Config) -> None:
    parse_densities(config.sparsity.densities)
    topology = config.topology
    needs_gradient = topology.grow is Grow.gradient or topology.drop is Drop.magnitude_and_gradient
    for name, read, where in (
        ("drop_temperature", topology.drop is Drop.soft_magnitude, "topology.drop=soft_magnitude"),
        ("drop_gradient_weight", topology.drop is Drop.magnitude_and_gradient, "topology.drop=magnitude_and_gradient"),
        ("probe_steps", needs_gradient, "topology.grow=gradient or topology.drop=magnitude_and_gradient"),
    ):
        value = getattr(topology, name)
        if not read and not added(topology.drop) and value != getattr(Config().topology, name):
            raise ConfigError(f"topology.{name}={value} is read with {where} alone; write that too, or leave it out")
    if topology.grow is Grow.nothing:
        _check_pruning(config)
        if topology.drop is Drop.magnitude_and_gradient:
            raise ConfigError(
                "topology.drop=magnitude_and_gradient does not go with topology.grow=nothing; write "
                "topology.drop=magnitude"
            )
    if config.optimizer.regrow_moments is RegrowMoments.keep and config.optimizer.local_step:
        raise ConfigError(
            "optimizer.regrow_moments=keep makes no sense with optimizer.local_step=true, whose bias correction takes "
            "moments to start from zero; write optimizer.local_step=false"
        )


def _check_pruning(config: Config) -> None:
    """A run that prunes must reach its density; one that never does would be a dense run under another name."""
    topology, steps = config.topology, config.train.steps
    if config.sparsity.enabled and not topology.enabled:
        raise ConfigError(
            "topology.enabled=false with topology.grow=nothing never prunes, so that every layer would stay dense; "
            "write topology.enabled=true, or method=dense"
        )
    if topology.enabled and topology.interval >= topology.stop_at * steps:
        raise ConfigError(
            f"topology.interval={topology.interval} leaves no update before step {topology.stop_at * steps:g} "
            "(topology.stop_at x train.steps), so that every layer would stay dense; write for instance "
            f"topology.interval={max(1, int(topology.stop_at * steps) // 10)}"
        )


def _check_drop_fractions(first: float, final: float) -> None:
    if final > first:
        raise ConfigError(
            f"topology.final_drop_fraction={final:g} is larger than topology.drop_fraction={first:g}, but the fraction "
            f"falls over the run; write topology.final_drop_fraction={first:g} or less"
        )


def _check_model(model: ModelConfig) -> None:
    if model.family is Family.auto:
        _check_auto_model(model)
        return
    if model.config_file is not None:
        raise ConfigError(
            f"model.config_file={model.config_file} is read with model.family=auto alone, not {model.family.name}; "
            f"write model=auto model.config_file={model.config_file}"
        )
    _check_divides("model.hidden_size", model.hidden_size, "model.heads", model.heads)
    if model.family is Family.gpt2 and model.kv_heads is not None:
        raise ConfigError(f"model.kv_heads={model.kv_heads} is for model.family=llama; leave it out with gpt2")
    if model.kv_heads is not None:
        _check_divides("model.heads", model.heads, "model.kv_heads", model.kv_heads)
    if model.family is Family.llama and (model.hidden_size // model.heads) % 2:
        raise ConfigError(
            f"model.hidden_size={model.hidden_size} over model.heads={model.heads} gives heads of odd size "
            f"{model.hidden_size // model.heads}, which rotary positions can't turn; write for instance "
            f"model.hidden_size={model.hidden_size + model.heads}"
        )


def _check_patterns(config: Config) -> None:
    """The patterns on layers, where their names are known without the model; others are checked when it is built."""
    sparsity, family = config.sparsity, config.model.family.name
    names = names_of(family, config.model.layers)
    if names is None or not sparsity.enabled:
        return
    include = PROJECTIONS[family] if sparsity.include is None else sparsity.include
    check_density_patterns(chosen_names(names, include, sparsity.exclude), parse_densities(sparsity.densities))


def _check_auto_model(model: ModelConfig) -> None:
    if model.config_file is None:
        raise ConfigError("model.family=auto needs model.config_file; write model.config_file=path/to/config.json")


def _check_divides(whole_key: str, whole: int, part_key: str, part: int) -> None:
    if whole % part:
        raise ConfigError(
            f"{part_key}={part} does not divide {whole_key}={whole}; write {part_key}="
            f"{max(size for size in range(1, min(part, whole) + 1) if whole % size == 0)} or {whole_key}="
            f"{(whole // part + 1) * part}"
        )


def _check_data(data: DataConfig) -> None:
    for name, sources in _READ_BY.items():
        if data.source not in sources and not added(data.source) and getattr(data, name) != getattr(DataConfig(), name):
            names = [source.name for source in sources]
            raise ConfigError(
                f"data.{name}={spell(getattr(data, name))} is not read by data.source={data.source.name}; it is for "
                f"{', '.join(names)}: write data={names[0]}, or leave it out"
            )
    if data.source in FILE_SOURCES and not data.files:
        raise ConfigError(
            f"data.source={data.source.name} needs data.files; write for instance data.files=['corpus/*.txt']"
        )
    if data.source is DataSource.hub and data.name is None:
        raise ConfigError("data.source=hub needs data.name; write for instance data.name=allenai/c4 data.subset=en")
    if data.tokenizer.file is not None and data.tokenizer.hub_name is not None:
        raise ConfigError(
            f"data.tokenizer.file={data.tokenizer.file} and data.tokenizer.hub_name={data.tokenizer.hub_name} are both "
            "given; leave one of them out"
        )
