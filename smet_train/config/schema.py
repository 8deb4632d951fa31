"""Every setting of a training run, with its meaning, its unit, its default and its range. Only the standard library.

Defaults live here and nowhere else; YAML files state only what differs. The names of Enum members are their spelling in
YAML and on the command line.
"""

from dataclasses import dataclass, field
from enum import Enum

from smet_train.config.fields import setting


class Family(Enum):
    """Architectures of transformers; ``auto`` is whatever ``model.config_file`` names."""

    llama = "llama"
    gpt2 = "gpt2"
    auto = "auto"


class DataSource(Enum):
    """Kinds of places that documents are read from."""

    python_source = "python_source"
    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"
    hub = "hub"


class OnBad(Enum):
    """What becomes of a document or file that can't be read."""

    error = "error"
    skip = "skip"


class TextUnit(Enum):
    """What counts as one document in a text file."""

    document = "document"
    paragraph = "paragraph"
    line = "line"


class Backend(Enum):
    """Ways to compute a sparse layer; each can tell why it can't compute a given one."""

    auto = "auto"
    densify = "densify"
    csr = "csr"
    block = "block"
    triton = "triton"
    reference = "reference"


class Allocation(Enum):
    """How a density is spread over layers: to all alike, or by Erdős-Rényi kernel, small layers denser."""

    uniform = "uniform"
    erk = "erk"


class Drop(Enum):
    """Which active values an update drops."""

    magnitude = "magnitude"
    soft_magnitude = "soft_magnitude"
    magnitude_and_gradient = "magnitude_and_gradient"


class Grow(Enum):
    """Which sites an update makes active; ``nothing`` prunes from dense to the density."""

    random = "random"
    gradient = "gradient"
    nothing = "nothing"


class RegrowMoments(Enum):
    """Which moments a grown value starts with: zeros, or those of a dropped value."""

    zero = "zero"
    keep = "keep"


class ValueInit(Enum):
    """The fan-in by which the first values are scaled."""

    active = "active"
    dense = "dense"


class DropSchedule(Enum):
    """How the drop fraction falls over the run."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    wsd = "wsd"


class LrDensityRule(Enum):
    """What a density d does to the learning rate of a sparse layer: nothing, times d^-1/2, times 1/d."""

    none = "none"
    sqrt = "sqrt"
    linear = "linear"


class Moments(Enum):
    """Number formats of Adam's moments."""

    fp32 = "fp32"
    fp8 = "fp8"


class LrScheduleName(Enum):
    """How the learning rate falls after the warm-up; ``wsd`` stays and falls at the end."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    wsd = "wsd"


class Precision(Enum):
    """``bf16_mixed`` holds values in fp32 and computes in bf16, ``bf16`` does both in bf16."""

    fp32 = "fp32"
    bf16_mixed = "bf16_mixed"
    bf16 = "bf16"


class Parallel(Enum):
    """What the processes of a run hold: all of the model each, or a part of values, gradients, moments and ages."""

    ddp = "ddp"
    fsdp = "fsdp"


class Device(Enum):
    """Where tensors lie."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Verify(Enum):
    """Which checkpoints are read through when a run goes on."""

    fast = "fast"
    full = "full"


class OnSaveError(Enum):
    """What a run does if a checkpoint can't be written."""

    stop = "stop"
    warn = "warn"


class WandbMode(Enum):
    """Whether events also go to Weights & Biases, and whether at once."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass
class ModelConfig:
    """The architecture; the vocabulary's size comes from the tokenizer."""

    family: Family = setting("architecture: llama, gpt2, or auto (any causal model, from config_file)", Family.llama)
    hidden_size: int = setting("width of the residual stream", 512, at_least=1, at_most=100_000)
    intermediate_size: int = setting("width inside each MLP", 1376, at_least=1, at_most=1_000_000)
    layers: int = setting("transformer blocks", 8, at_least=1, at_most=10_000)
    heads: int = setting("attention heads of a block", 8, at_least=1, at_most=10_000)
    kv_heads: int | None = setting(
        "key/value heads of a block (llama); null = as many as heads", None, at_least=1, at_most=10_000
    )
    dropout: float = setting("dropout probability", 0.0, at_least=0, below=1)
    tie_embeddings: bool = setting("the output layer shares the embedding's weight", False)
    initializer_range: float = setting("standard deviation of the first dense weights", 0.02, above=0)
    config_file: str | None = setting("path of a transformers config.json (family=auto)", None)
    init_from: str | None = setting(
        "folder whose trained weights alone are begun from (Hugging Face, run, checkpoint, sparse)",
        None,
    )


@dataclass
class TokenizerConfig:
    """Where the tokenizer comes from; one is trained on the data if neither file nor hub_name is given."""

    file: str | None = setting("path of a tokenizer.json; null = train one on the data", None)
    hub_name: str | None = setting("name of a tokenizer on the Hugging Face hub", None)
    # 256 bytes and the end-of-text token
    vocab_size: int = setting("entries of a trained vocabulary", 32000, at_least=257, at_most=10_000_000)
    train_bytes: int = setting("bytes of text that a tokenizer is trained on", 20_000_000, at_least=1, at_most=10**12)


@dataclass
class DataConfig:
    """The text, and how it becomes windows of tokens."""

    source: DataSource = setting("where documents come from; choose it by data=NAME", DataSource.python_source)
    files: list[str] = setting("globs or http(s) URLs (text, jsonl, parquet)", [])
    name: str | None = setting("data set on the Hugging Face hub (hub)", None)
    subset: str | None = setting("configuration of a hub data set; null = its default (hub)", None)
    split: str = setting("split of a hub data set (hub)", "train")
    text_field: str = setting("field or column that holds the text (jsonl, parquet, hub)", "text")
    text_unit: TextUnit = setting("what one document is in a text file (text)", TextUnit.paragraph)
    sequence_tokens: int = setting("tokens in a training window", 256, at_least=2, at_most=10_000_000)
    shuffle_documents: int = setting("documents in a shuffled block; 1 = keep their order", 1000, at_least=1)
    validation_fraction: float = setting("fraction of the documents held out", 0.01, above=0, below=1)
    prefetch_batches: int = setting("micro-batches read ahead", 4, at_least=0, at_most=1_000_000)
    cache_dir: str | None = setting("folder of tokenizers and validation windows; null = the user's cache", None)
    on_bad: OnBad = setting("documents and files that can't be read: end the run, or leave them out", OnBad.error)
    max_bad_fraction: float = setting(
        "documents of an epoch that may be bad before the run ends after all (skip)", 0.01, at_least=0, at_most=1
    )
    max_document_bytes: int = setting("bytes from which a document (jsonl: line) is bad", 50_000_000, at_least=1)
    retries: int = setting("further tries after a lost connection or a failing disk, ever later", 5, at_least=0)
    allow_changed_source: bool = setting("go on in files that changed since the checkpoint was written", False)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


@dataclass
class SparsityConfig:
    """Which layers are sparse, and how sparse."""

    enabled: bool = setting("make the chosen layers sparse; false = train densely", True)
    density: float = setting("fraction of each sparse matrix that exists", 0.1, above=0, at_most=1)
    block_size: int = setting(
        "edge of the square blocks that are active or not; 1 = single values", 1, at_least=1, at_most=100_000
    )
    allocation: Allocation = setting("share of each layer: all alike, or by its shape (erk)", Allocation.uniform)
    densities: list[str] = setting("PATTERN=DENSITY of layers with a density of their own", [])
    include: list[str] | None = setting("globs of the layers to make sparse; null = all projections", None)
    exclude: list[str] = setting("globs of layers to leave dense after all", [])
    backend: Backend = setting("how a sparse layer is computed; auto = what is fastest here", Backend.densify)
    init: ValueInit = setting("fan-in that scales first values: active sites of a row, or dense", ValueInit.active)


@dataclass
class TopologyConfig:
    """When active sites move, and how many."""

    enabled: bool = setting("move the topology; false = it stays as first drawn", True)
    interval: int = setting("steps between topology updates", 100, at_least=1)
    drop_fraction: float = setting("largest fraction of active values that an update drops", 0.2, above=0, below=1)
    final_drop_fraction: float = setting(
        "that fraction when the topology comes to rest (constant: not read)", 0.005, at_least=0, below=1
    )
    drop_schedule: DropSchedule = setting(
        "how the fraction falls until stop_at (wsd: rises, stays, falls)", DropSchedule.cosine
    )
    drop: Drop = setting("what goes: least |value|, sampled by |value|, least |value| + |gradient|", Drop.magnitude)
    drop_temperature: float = setting("of sampling; towards 0 it is magnitude (soft_magnitude)", 0.25, above=0)
    drop_gradient_weight: float = setting("of |gradient| beside |value| (magnitude_and_gradient)", 1.0, at_least=0)
    grow: Grow = setting("what comes: random sites, those of largest |gradient|, nothing (dense at first)", Grow.random)
    probe_steps: int = setting("coming steps whose batches an update's gradients are averaged over", 1, at_least=1)
    stop_at: float = setting("fraction of train.steps after which the topology stays", 1.0, above=0, at_most=1)


@dataclass
class OptimizerConfig:
    """Adam with a local step for each regrown value, and the learning rate."""

    lr: float = setting("peak learning rate, before the density rule", 5e-4, above=0)
    embedding_lr: float | None = setting("that of embeddings and output layer; null = as lr", None, above=0)
    betas: list[float] = setting("decay of the first and second moment", [0.9, 0.999], at_least=0, below=1)
    eps: float = setting("added to the root of the second moment", 1e-8, above=0)
    weight_decay: float = setting("decoupled weight decay, times the learning rate", 0.0, at_least=0)
    moments: Moments = setting(
        "format of both moments: fp32, or fp8 (8 bits, an exponent for 64, rounded without bias)", Moments.fp32
    )
    grad_clip: float = setting("largest global norm of the gradient; 0 = no clipping", 1.0, at_least=0)
    local_step: bool = setting("bias correction counts each value's own steps; false = the run's", True)
    regrow_moments: RegrowMoments = setting(
        "moments of a regrown value: zero, or those of a dropped one", RegrowMoments.zero
    )
    regrow_warmup_steps: int = setting("steps over which a regrown value's updates grow to full size", 100, at_least=0)
    lr_density_rule: LrDensityRule = setting(
        "sparse layers' lr times 1, density^-1/2 or 1/density", LrDensityRule.linear
    )
    schedule: LrScheduleName = setting("learning rate over the run, after the warm-up", LrScheduleName.cosine)
    warmup_fraction: float = setting("fraction of train.steps with a rising learning rate", 0.05, at_least=0, at_most=1)
    min_lr_ratio: float = setting("learning rate at the last step, as a fraction of lr", 0.1, at_least=0, at_most=1)
    decay_fraction: float = setting("fraction of train.steps that decay (wsd)", 0.2, at_least=0, at_most=1)


@dataclass
class TrainConfig:
    """How long, how much at once, in what precision, on what."""

    steps: int = setting("optimizer steps", 10_000, at_least=1)
    batch_size: int = setting("sequences in an optimizer step", 512, at_least=1, at_most=1_000_000)
    micro_batch_size: int = setting("sequences computed at once; divides batch_size", 16, at_least=1, at_most=1_000_000)
    processes: int = setting(
        "processes of this machine that share a batch, a GPU each; under torchrun 1",
        1,
        at_least=1,
        at_most=1024,
    )
    parallel: Parallel = setting(
        "what each process holds: ddp = all; fsdp = its part of weights, index and optimizer state", Parallel.ddp
    )
    max_silence_minutes: float = setting(
        "minutes without a sign of life of another process after which the run ends (several processes)", 30.0, above=0
    )
    precision: Precision = setting("number format of values and of computation", Precision.fp32)
    device: Device = setting("auto = the GPU where there is one", Device.auto)
    activation_checkpointing: bool = setting(
        "keep each block's input alone and compute the block again backward", False
    )
    fused_backward_step: bool = setting(
        "update each parameter in the backward pass; needs grad_clip=0 and no accumulation",
        False,
    )
    release_freed_memory: bool = setting(
        "give freed tensors back to the system at once: a smaller process, and slower (CPU, glibc)", False
    )
    deterministic: bool = setting("refuse torch operations that may differ from run to run (on GPUs: slower)", False)
    max_hours: float | None = setting("hours after which the run saves and ends; null = no limit", None, above=0)
    max_bad_steps: int = setting(
        "steps in a row with a NaN or infinite loss or gradient that are passed over, before going back", 5, at_least=0
    )
    max_rollbacks: int = setting(
        "times that the run goes back to its newest checkpoint and trains on with later data", 3, at_least=0
    )
    max_loss_rise: float | None = setting(
        "nats above the median of the last 50 losses from which a step is passed over too; null = any", None, above=0
    )
    eval_interval: int = setting("steps between evaluations; 0 = only at start and end", 500, at_least=0)
    eval_windows: int = setting("validation windows in an evaluation", 128, at_least=1, at_most=10_000_000)
    log_interval: int = setting("steps between console lines when not on a terminal", 10, at_least=1)


@dataclass
class CheckpointConfig:
    """What is saved, and what a run starts from."""

    interval: int = setting("steps between checkpoints; 0 = only at the end", 500, at_least=0)
    keep: int = setting("newest checkpoints that are kept", 3, at_least=1)
    keep_every: int = setting("steps between checkpoints that are kept for good; 0 = none", 0, at_least=0)
    asynchronous: bool = setting("write in the background, from a copy in memory, while training goes on", False)
    on_error: OnSaveError = setting("when one can't be written: stop, or warn and train on", OnSaveError.stop)
    verify: Verify = setting("checksums when resuming: of the one that is used, or of all (full)", Verify.fast)
    follow_link: bool = setting("let checkpoints/ of the run folder be a link to another folder", False)
    resume: str = setting("auto = go on in the run folder, never = a fresh folder, or a checkpoint's path", "auto")


@dataclass
class TrackingConfig:
    """What is recorded beside the losses."""

    wandb: WandbMode = setting("also log to Weights & Biases", WandbMode.disabled)
    wandb_project: str = setting("project of the wandb run", "smet-train")
    wandb_entity: str | None = setting("user or team of the wandb run; null = the account's default", None)
    wandb_group: str | None = setting("group of the wandb run; null = a sweep's runs by the sweep's folder", None)
    wandb_tags: list[str] = setting("tags of the wandb run", [])
    tensorboard: bool = setting("also write event files for TensorBoard, into tensorboard/ of the run folder", False)
    spike_horizon_steps: int = setting("steps after a topology update in which its spike is sought", 30, at_least=1)
    spike_baseline_steps: int = setting("steps before an update whose mean loss is its baseline", 10, at_least=1)
    exploration: bool = setting("count the sites ever active, one bit a site", True)
    probe_windows: int = setting("sequences in the fixed probe batch; 0 = none", 0, at_least=0, at_most=1_000_000)
    map_layer: str | None = setting(
        "glob; the first sparse layer it matches has where it is active recorded at each update; null = none",
        "*",
    )


@dataclass
class DebugConfig:
    """Slow checks."""

    check_invariants: bool = setting("check every index after every topology update", False)


@dataclass
class Config:
    """A whole training run."""

    seed: int = setting("seed of weights, topology and data order", 1, at_least=0, below=2**32)
    method: str = setting("name of the preset; choose it by method=NAME", "smet")
    plugins: list[str] = setting("Python files (.py) or modules that add backends, rules or sources", [])
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
