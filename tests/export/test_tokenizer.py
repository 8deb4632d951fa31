"""What is exported makes from a text the ids that training made, whatever its tokenizer's post-processor would add."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from smet_train.build_data import warn_of_another_tokenizer
from smet_train.config.compose import compose
from smet_train.config.schema import Config
from smet_train.data.tokenizer import TextTokenizer
from smet_train.errors import CheckpointError
from smet_train.export import write
from smet_train.export.card import model_card
from smet_train.export.write import export
from smet_train.job import run_training
from smet_train.trained import Trained, open_trained

BOS, EOS = "<s>", "</s>"
TEXTS = [
    "few sites move",
    "",
    " the model  reads\n",
    f"spelled {BOS} and {EOS} in a text",
    "Käse 日本",
    "added NAME here",
]


def template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, pair=None, special_tokens=[(BOS, 0), (EOS, 1)])


# All kinds that tokenizers has.
POST_PROCESSORS: dict[str, Callable[[], processors.PostProcessor | None]] = {
    "none": lambda: None,
    "BOS before": lambda: template(f"{BOS} $A"),
    "EOS behind": lambda: template(f"$A {EOS}"),
    "both": lambda: template(f"{BOS} $A {EOS}"),
    "bytes": lambda: processors.ByteLevel(trim_offsets=True),
    "bert": lambda: processors.BertProcessing((EOS, 1), (BOS, 0)),
    "roberta": lambda: processors.RobertaProcessing((EOS, 1), (BOS, 0), trim_offsets=True, add_prefix_space=False),
    "several": lambda: processors.Sequence([processors.ByteLevel(trim_offsets=False), template(f"{BOS} $A")]),
}


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def unigram() -> Tokenizer:
    letters = sorted({letter for text in TEXTS for letter in text} - {"日"})
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((letter, -2.0) for letter in ["▁", *letters])], 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([BOS, EOS])
    return made


def test_every_kind_of_post_processor_is_tried() -> None:
    kinds = {name for name, kind in vars(processors).items() if isinstance(kind, type)} - {"PostProcessor"}
    tried = {type(made()).__name__ for made in POST_PROCESSORS.values()}
    assert tried == kinds | {"NoneType"}


@pytest.mark.parametrize("kind", POST_PROCESSORS)
@pytest.mark.parametrize("make", [byte_level, unigram])
@pytest.mark.parametrize("class_name", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_the_ids_of_a_text_are_those_of_training(
    kind: str, make: Callable[[], Tokenizer], class_name: str, trained_as: Callable[[str], Trained], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In transformers beside the model's config.json, from the run's own folder, and in tokenizers alone."""
    made = make()
    made.add_tokens([AddedToken("NAME")])
    made.post_processor = POST_PROCESSORS[kind]()
    (tmp_path / "given").mkdir()
    made.save(str(tmp_path / "given" / "tokenizer.json"))
    settings = {"eos_token": EOS, "bos_token": BOS, "add_bos_token": True, "tokenizer_class": class_name}
    (tmp_path / "given" / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = TextTokenizer.from_file(tmp_path / "given")
    monkeypatch.setattr(write, "open_trained", lambda *_, **__: replace(trained_as("llama_gqa"), tokenizer=tokenizer))
    export(tmp_path, "hf", tmp_path / "exported")
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run")
    assert TextTokenizer.from_file(tmp_path / "run").content_hash == tokenizer.content_hash
    plain = Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json"))
    plain.encode_special_tokens = True
    exported, beside = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("exported", "run"))
    ids = tokenizer.encode_many(TEXTS)
    assert ids[1] == []
    assert plain.encode("few sites move").ids == ids[0]
    assert exported(TEXTS)["input_ids"] == beside(TEXTS)["input_ids"] == ids
    assert [plain.encode(text).ids for text in TEXTS] == ids
    assert [exported.encode(text) for text in TEXTS] == ids
    assert exported.eos_token_id == tokenizer.eos_id
    assert TextTokenizer.from_file(tmp_path / "exported").encode_many(TEXTS) == ids


def test_the_model_card_says_what_begins_a_text(trained_as: Callable[[str], Trained]) -> None:
    made = byte_level()
    made.post_processor = template(f"{BOS} $A")
    card = model_card(replace(trained_as("llama_gqa"), tokenizer=TextTokenizer(made, EOS)), "hf", "little")
    assert f"| beginning of a text | `{EOS}` (id 1), as between documents; put its id before those of a text |" in card
    assert "| ids of a text | those of training: the tokenizer adds none, and takes a special token's name" in card


def test_an_exported_tokenizer_is_not_told_to_be_another_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trained_as: Callable[[str], Trained]
) -> None:
    """Than the one that it comes from, which the post-processor tells apart in its file alone."""
    made = byte_level()
    made.post_processor = template(f"{BOS} $A")
    made.save(str(tmp_path / "given.json"))
    TextTokenizer.from_file(tmp_path / "given.json").save(tmp_path)
    config = compose([])
    config.model.init_from = str(tmp_path)
    warn_of_another_tokenizer(config, TextTokenizer.from_file(tmp_path / "given.json"))
    assert not caplog.records
    warn_of_another_tokenizer(config, trained_as("llama_gqa").tokenizer)
    assert "is another one than" in caplog.text


def test_a_run_of_a_version_that_kept_the_post_processor_goes_on(
    quick_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by the hash of its file as it was, which stays as it is for the checkpoints before."""
    made = byte_level()
    made.post_processor = template(f"{BOS} $A")
    made.save(str(tmp_path / "given.json"))
    config = quick_config(f"data.tokenizer.file={tmp_path / 'given.json'}", "train.steps=3")
    with monkeypatch.context() as before:
        before.setattr(TextTokenizer, "__init__", initialized_before)
        run_training(config, tmp_path / "run")
    kept = (tmp_path / "run" / "tokenizer.json").read_text()
    assert json.loads(kept)["post_processor"]["type"] == "TemplateProcessing"
    config.train.steps = 6
    assert run_training(config, tmp_path / "run") == 0
    assert (tmp_path / "run" / "tokenizer.json").read_text() == kept
    for step in (3, 6):
        trained = open_trained(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
        assert trained.tokenizer.encode("few") == trained.tokenizer._tokenizer.encode("few").ids
    config.data.tokenizer.file, config.train.steps = None, 9
    other = byte_level()
    other.add_tokens(["another"])
    other.save(str(tmp_path / "run" / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="is not the tokenizer that step_00000006 was trained with"):
        open_trained(tmp_path / "run")


def initialized_before(self: TextTokenizer, tokenizer: Tokenizer, eos_token: str) -> None:
    """What ``TextTokenizer`` did in version 0.1.0."""
    tokenizer.encode_special_tokens = True
    self._tokenizer = self._encoder = tokenizer
    self.eos_token = eos_token
    self.eos_id = tokenizer.token_to_id(eos_token) or 0
    self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    self.content_hash = hashlib.sha256(f"{eos_token}\0{tokenizer.to_str()}".encode()).hexdigest()
    self.encoding_hash = self.given_hash = self.content_hash
