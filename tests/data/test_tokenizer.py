import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from smet_train.data.cache import default_cache_dir
from smet_train.data.sources import Source, SourceSpec, open_source
from smet_train.data.tokenizer import TextTokenizer, prepare_tokenizer
from smet_train.errors import DataError


def prepare(source: Source, folder: Path, **changed: object) -> TextTokenizer:
    wanted: dict[str, object] = {
        "file": None,
        "hub_name": None,
        "vocab_size": 300,
        "train_bytes": 5000,
        "validation_fraction": 0.1,
        "cache_dir": folder,
    }
    return prepare_tokenizer(source, **{**wanted, **changed})  # type: ignore[arg-type]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text())
def test_decoding_gives_the_text_back(tokenizer: TextTokenizer, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_text_that_spells_a_special_token_does_not_end_the_document(tokenizer: TextTokenizer) -> None:
    assert tokenizer.eos_id not in tokenizer.encode("a <|endoftext|> b")
    assert tokenizer.vocab_size == 300


def test_training_is_deterministic_and_cached_by_content(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = prepare(source, tmp_path / "one")
    other = prepare(source, tmp_path / "two")
    assert first.to_json() == other.to_json()
    caplog.clear()
    assert prepare(source, tmp_path / "one").content_hash == first.content_hash
    assert "from the cache" in caplog.text
    assert prepare(source, tmp_path / "one", vocab_size=290).vocab_size == 290
    assert len(list((tmp_path / "one" / "tokenizers").iterdir())) == 2


@pytest.mark.parametrize("damage", ["{", None])
def test_a_damaged_cache_is_trained_again(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str | None
) -> None:
    first = prepare(source, tmp_path)
    (cached,) = (tmp_path / "tokenizers").iterdir()
    changed = json.loads(cached.read_text())
    changed["model"]["merges"].pop()
    cached.write_text(damage or json.dumps(changed))
    assert prepare(source, tmp_path).content_hash == first.content_hash
    assert "training it again" in caplog.text


def test_a_text_with_few_words_gives_a_small_vocabulary(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    size = prepare(source, tmp_path, vocab_size=30_000).vocab_size
    assert size < 30_000
    assert f"vocab_size=30000, but the text that trains the tokenizer gives no more than {size} tokens" in caplog.text


def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = TextTokenizer.from_file(path)
        assert (loaded.content_hash, loaded.eos_id) == (tokenizer.content_hash, tokenizer.eos_id)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs("few sites move")["input_ids"] == tokenizer.encode("few sites move")


@pytest.mark.process
def test_a_tokenizer_is_saved_in_utf8_whatever_the_locale(source: Source, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from smet_train.data.tokenizer import TextTokenizer\n"
        "TextTokenizer.from_file(Path('in')).save(Path('out'))\n"
    )
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    prepare(source, tmp_path).save(tmp_path / "in")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "in/tokenizer.json").read_bytes()


def test_a_tokenizer_of_ones_own_is_loaded(source: Source, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = prepare(source, tmp_path / "cache", file=str(tmp_path / "tokenizer.json"))
    assert loaded.content_hash == tokenizer.content_hash
    assert not (tmp_path / "cache" / "validation").exists()


def test_what_one_process_tells_another_is_the_same_tokenizer(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends its documents by an unusual token, whatever lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    tokenizer.save(tmp_path / "own")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "own" / name
        path.write_text(path.read_text().replace("<|endoftext|>", "<stop>"))
    own = TextTokenizer.from_file(tmp_path / "own")
    assert own.eos_token == "<stop>"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    told = TextTokenizer.from_json(own.to_json(), own.eos_token)
    assert (told.content_hash, told.eos_id) == (own.content_hash, own.eos_id)


def test_what_is_wrong_with_a_tokenizer_file_is_told(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        TextTokenizer.from_file(tmp_path / "nothing.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer.json"):
        TextTokenizer.from_file(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match="is not a JSON object"):
        TextTokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    with pytest.raises(DataError, match="its eos_token '<end>' is not in the vocabulary"):
        TextTokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert TextTokenizer.from_file(tmp_path).eos_id == tokenizer.eos_id
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace("endoftext", "stop"))
    with pytest.raises(DataError, match="has none of the usual end-of-text tokens"):
        TextTokenizer.from_file(tmp_path)


def test_settings_that_make_no_tokenizer(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are both given"):
        prepare(source, tmp_path, file="a", hub_name="b")
    with pytest.raises(DataError, match="vocab_size=100 is too small: 257 is the least"):
        prepare(source, tmp_path, vocab_size=100)
    with pytest.raises(DataError, match=r"all \d+ documents fall into the validation split of .*; lower it"):
        prepare(source, tmp_path, validation_fraction=1 - 1e-12)
    (tmp_path / "one.txt").write_text("one text\n\nof two paragraphs\n")
    whole = open_source(SourceSpec("text", files=(str(tmp_path / "one.txt"),), text_unit="document"))
    with pytest.raises(DataError, match="with 1 document there is little to hold out: write data.text_unit=paragraph"):
        prepare(whole, tmp_path, validation_fraction=1 - 1e-12)


def test_a_hub_tokenizer(
    source: Source, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    with pytest.raises(DataError, match="can't reach the hub") as told:
        prepare(source, tmp_path, hub_name="openai-community/gpt2")
    assert told.value.exit_status == 1
    with pytest.raises(DataError, match="data.tokenizer.hub_name=not a name"):
        prepare(source, tmp_path, hub_name="not a name")
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()

    def download(_: str, file: str) -> str:
        if not (tmp_path / file).exists():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert prepare(source, tmp_path, hub_name="a/b").content_hash == tokenizer.content_hash


def test_the_last_document_is_cut_at_the_byte_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 3000)
    source = open_source(SourceSpec("text", files=(str(tmp_path / "a.txt"),)))
    few = prepare(source, tmp_path, train_bytes=3, validation_fraction=1e-9)
    assert few.vocab_size == 258  # one merge: the two bytes of the letter


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SMET_CACHE_DIR", raising=False)
    assert default_cache_dir().name == "smet-train"
    monkeypatch.setenv("SMET_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
