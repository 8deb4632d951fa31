"""Sources small enough to know by heart."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer


@pytest.fixture
def shards(tmp_path: Path, documents: Callable[..., list[str]]) -> list[Path]:
    """Three text files with 40, 30 and 50 documents, one a line."""
    paths = []
    for number, size in enumerate((40, 30, 50)):
        path = tmp_path / f"shard_{number}.txt"
        path.write_text(
            "\n".join(f"{number}.{document}" for document in documents(size, seed=number)), encoding="utf-8"
        )
        paths.append(path)
    return paths


@pytest.fixture
def source(shards: list[Path]) -> Source:
    return open_source(SourceSpec("text", files=tuple(map(str, shards)), text_unit="line"))


@pytest.fixture
def tokenizer(source: Source, tmp_path: Path) -> TextTokenizer:
    return prepare_tokenizer(
        source,
        file=None,
        hub_name=None,
        vocab_size=300,
        train_bytes=5000,
        validation_fraction=0.1,
        cache_dir=tmp_path / "cache",
    )
