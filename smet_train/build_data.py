"""The data of a run from its settings: source, tokenizer, micro-batches, held-out windows."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from smet_train.config.init_source import source_tokenizer
from smet_train.config.schema import Config
from smet_train.data.loader import BatchLoader
from smet_train.data.rules import ReadRules
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.stream import TokenWindows
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer
from smet_train.data.validation import HeldOut, held_out_windows
from smet_train.sparse_model import cache_dir, named_tokenizer
from smet_train.train.processes import Processes
from smet_train.train.shared_batches import SharedBatches

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Data:
    """Everything that comes from the data source."""

    description: str
    tokenizer: TextTokenizer
    batches: BatchLoader | SharedBatches
    validation: Tensor

    def close(self) -> None:
        """Stop reading ahead."""
        self.batches.close()


def build_source(config: Config) -> Source:
    """Open the source of documents that the settings describe."""
    return open_source(
        SourceSpec(
            kind=config.data.source.name,
            files=tuple(config.data.files),
            name=config.data.name,
            subset=config.data.subset,
            split=config.data.split,
            text_field=config.data.text_field,
            text_unit=config.data.text_unit.name,
            rules=ReadRules(
                on_bad=config.data.on_bad.name,
                max_bad_fraction=config.data.max_bad_fraction,
                max_document_bytes=config.data.max_document_bytes,
                retries=config.data.retries,
            ),
            allow_changed_source=config.data.allow_changed_source,
        ),
        cache_dir(config),
    )


def build_held_out(config: Config, source: Source, tokenizer: TextTokenizer) -> HeldOut:
    """The held-out windows that a run looks at: those of its evaluations, then those of its probe batch."""
    return held_out_windows(
        source,
        tokenizer,
        sequence_tokens=config.data.sequence_tokens,
        windows=config.train.eval_windows + config.tracking.probe_windows,
        validation_fraction=config.data.validation_fraction,
        cache_dir=cache_dir(config),
    )


def build_data(config: Config, tokenizer_file: Path | None) -> Data:
    """Open the source, get its tokenizer (``tokenizer_file`` if the run has one already) and cut it into windows."""
    source = build_source(config)
    log.info("data: %s", source.description)
    file, hub_name = named_tokenizer(config) if tokenizer_file is None else (str(tokenizer_file), None)
    tokenizer = prepare_tokenizer(
        source,
        file=file,
        hub_name=hub_name,
        vocab_size=config.data.tokenizer.vocab_size,
        train_bytes=config.data.tokenizer.train_bytes,
        validation_fraction=config.data.validation_fraction,
        cache_dir=cache_dir(config),
    )
    if tokenizer_file is None:
        warn_of_another_tokenizer(config, tokenizer)
    validation = build_held_out(config, source, tokenizer).windows
    windows = TokenWindows(
        source,
        tokenizer,
        sequence_tokens=config.data.sequence_tokens,
        seed=config.seed,
        shuffle_documents=config.data.shuffle_documents,
        validation_fraction=config.data.validation_fraction,
        allow_changed_source=config.data.allow_changed_source,
    )
    batches = BatchLoader(
        windows, micro_batch_size=config.train.micro_batch_size, prefetch_batches=config.data.prefetch_batches
    )
    return Data(source.description, tokenizer, batches, validation)


def build_shared_data(config: Config, tokenizer_file: Path | None, processes: Processes) -> Data:
    """As :func:`build_data`, for all processes of a run: the leading one reads, the others are told."""
    if processes.size == 1:
        return build_data(config, tokenizer_file)
    own: Data | None = None

    def build() -> tuple[str, tuple[str, str], Tensor]:
        nonlocal own
        own = build_data(config, tokenizer_file)
        return own.description, (own.tokenizer.to_json(), own.tokenizer.eos_token), own.validation

    description, tokenizer, validation = processes.told(build)
    loader = None if own is None else own.batches
    assert not isinstance(loader, SharedBatches)
    shape = config.train.micro_batch_size, config.data.sequence_tokens + 1
    batches = SharedBatches(processes, loader, shape)
    return Data(description, TextTokenizer.from_json(*tokenizer), batches, validation)


def warn_of_another_tokenizer(config: Config, tokenizer: TextTokenizer) -> None:
    """Say so if ``model.init_from`` has a tokenizer and the run's is not that one."""
    beside = None if config.model.init_from is None else source_tokenizer(Path(config.model.init_from))
    if beside is not None and TextTokenizer.from_file(beside).content_hash != tokenizer.content_hash:
        log.warning(
            "the tokenizer that data.tokenizer names is another one than %s, so that ids may be other text than they "
            "were for the weights of model.init_from; leave data.tokenizer out to train with theirs",
            beside,
        )
