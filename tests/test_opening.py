"""What may be read of a folder from somebody else: every limit, and files that are what they should not be."""

import errno
import io
import json
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from smet_train import opening
from smet_train.config.plain import from_dict, to_dict
from smet_train.config.saved import read_settings
from smet_train.config.schema import Config
from smet_train.data.manifest import _unpacked
from smet_train.errors import CheckpointError, ConfigError, DataError
from smet_train.models.architecture import without_code
from smet_train.models.stored import stored_tensors
from smet_train.sparse.coding import CODED, code, decode
from smet_train.tracking.jsonl import read_events
from smet_train.train import files
from smet_train.train.checkpoint import _own_checksum, load_plain, what_is_wrong


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", 7, None]
)
def test_a_name_that_leads_elsewhere_is_none(name: object) -> None:
    with pytest.raises(ValueError, match="is no plain file name"):
        opening.plain_name(name)
    assert opening.plain_name("model-00001-of-00002.safetensors") == "model-00001-of-00002.safetensors"


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "piped").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    for name, kind in {"pipe": "a pipe", "zero": "a device", "piped": "a pipe", "socket": "a socket"}.items():
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            opening.regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        opening.regular(tmp_path)
    (tmp_path / "file").write_text("content")
    (tmp_path / "linked").symlink_to("file")
    assert opening.read_text(tmp_path / "linked") == "content"


def test_a_file_that_is_swapped_while_it_is_opened_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("content")
    os.mkfifo(tmp_path / "pipe")
    real = os.open
    monkeypatch.setattr(os, "open", lambda _, *flags: real(tmp_path / "pipe", *flags))
    with pytest.raises(OSError, match="it is a pipe"):
        opening.regular(tmp_path / "file")
    with pytest.raises(OSError, match="it is a pipe|No such device"):
        opening.open_own(tmp_path / "file", os.O_WRONLY)


def test_a_file_has_no_more_bytes_than_it_can_need(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="it has 1,099,511,627,776 bytes, 10 are the most") as caught:
        opening.read_bytes(tmp_path / "holes", 10)
    assert caught.value.errno == errno.EFBIG
    growing = Path("/proc/self/status")  # 0 bytes by its size
    with pytest.raises(OSError, match="it has more than 10 bytes"):
        opening.read_bytes(growing, 10)
    with pytest.raises(ValueError, match="a line of more than 4 bytes"):
        list(opening.bounded_lines(io.BytesIO(b"1234\n"), 4))


def test_a_file_that_is_all_holes_is_not_hashed(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.write(b"head")
        file.truncate(1 << 42)
    with pytest.raises(OSError, match=r"of its 4,398,046,511,104 bytes no more than [\d,]+ are there"):
        files.read_checksum(tmp_path / "holes")
    with (tmp_path / "holes").open("r+b") as file:
        file.truncate(1 << 20)
    assert files.read_checksum(tmp_path / "holes").n_bytes == 1 << 20


def test_json_is_an_object_that_is_not_too_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        opening.read_json(tmp_path / "deep.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="it is no JSON object"):
        opening.read_object(tmp_path / "list.json")


def test_a_line_that_is_too_deep_is_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("[" * 200_000 + "\n{}\n")
    with pytest.raises(ValueError, match="line 1: it is nested too deeply"):
        read_events(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [" + "1, " * 9 + "1]\n" + "b: *x\n", r"it has the alias \*x; write out what it stands for"),
        ("[" * 100_000, "it is nested too deeply"),
        ("a: " + "[" * 30 + "]" * 30, "it is nested too deeply"),
        ("a: " + "x" * opening.LARGEST_SETTINGS, "1,048,576 are the most"),
    ],
)
def test_a_config_that_can_grow_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"config.yaml .*{reason}"):
        read_settings(tmp_path)


def test_a_key_as_long_as_a_book_is_told_shortly(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**to_dict(Config()), "k" * 500_000: 1}))
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path)
    assert len(str(caught.value)) < 1000


def test_what_is_written_goes_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(OSError, match="it is a link, through which nothing is written|it is a pipe"):
            opening.append_to(tmp_path / name)
    with opening.append_to(tmp_path / "own") as file:
        file.write(b"line\n")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "own").read_text() == "line\n"


def test_the_first_stray_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path)
    assert opening.first_stray(tmp_path, ("checkpoints",)) is None
    stray = opening.first_stray(tmp_path)
    assert stray is not None
    assert stray.filename == str(tmp_path / "checkpoints")


def test_a_value_of_another_kind_is_told_where_it_is() -> None:
    like: dict[str, Any] = {"step": 1, "loss": 1.5, "open": None, "list": [], "name": "x", "in": {"deep": True}}
    opening.require_alike({**like, "open": [1], "loss": 2, "list": [1]}, like, "state")
    for key, value in {"step": "1", "loss": "x", "list": {}, "name": 1, "in": {"deep": 1}}.items():
        with pytest.raises(TypeError, match=f"state.{key}"):
            opening.require_alike({**like, key: value}, like, "state")
    for number in (-2, 1 << 64, 1 << 100_000):
        with pytest.raises(TypeError, match=r"state\.step is"):
            opening.require_alike({"step": number}, like, "state")


def test_what_python_says_of_a_malformed_file_is_one_line() -> None:
    nothing: dict[str, int] = {}
    wrongs: dict[str, Callable[[], object]] = {
        "a is missing": lambda: nothing["a"], "invalid literal": lambda: int("x"), ".*division": lambda: 1 // 0
    }  # fmt: skip
    for told, wrong in wrongs.items():
        with (
            pytest.raises(CheckpointError, match=f"x holds what smet-train never writes \\({told}.*\\); go"),
            opening.malformed("x", CheckpointError, "go"),
        ):
            wrong()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A signed checkpoint without tensors, whose manifest has been changed."""

    def write(**changes: object) -> Path:
        path = tmp_path / "checkpoints" / "step_00000003"
        path.mkdir(parents=True)
        state = files.write_json(path / "state.json", {"step": 3})
        listed = {"state.json": {"n_bytes": state.n_bytes, "checksum": state.checksum}}
        content = {"format": 3, "version": "0", "step": 3, "files": listed} | changes
        (path / "manifest.json").write_text(json.dumps({**content, "checksum": _own_checksum(content)}))
        return path

    return write


@pytest.mark.parametrize(
    ("files_", "reason"),
    [
        ({"/dev/zero": {"n_bytes": 1, "checksum": ""}}, "is no plain file name"),
        ({"../x": {"n_bytes": 1, "checksum": ""}}, "is no plain file name"),
        ({"sharded/../../x": {"n_bytes": 1, "checksum": ""}}, "is no plain file name"),
        ({"pipe": {"n_bytes": 0, "checksum": ""}}, "it is a pipe, not a file"),
        ({"state.json": {"n_bytes": "1", "checksum": ""}}, "a size is no whole number"),
        ({"state.json": {"n_bytes": True, "checksum": ""}}, "a size is no whole number"),
        ({"state.json": {"n_bytes": 1, "checksum": None}}, "or a checksum no text"),
        ({"state.json": 1}, "not subscriptable"),
        ([], "holds what smet-train never writes"),
    ],
)
def test_a_signed_manifest_names_files_of_its_folder_alone(
    checkpoint: Callable[..., Path], files_: object, reason: str
) -> None:
    path = checkpoint(files=files_)
    os.mkfifo(path / "pipe")
    assert reason in str(what_is_wrong(path))


def test_a_signed_step_that_is_none(checkpoint: Callable[..., Path]) -> None:
    assert "holds what smet-train never writes" in str(what_is_wrong(checkpoint(step="three")))


def test_a_state_that_is_no_object_is_told(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint()
    assert load_plain(path) == {"step": 3}
    (path / "state.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="it is no JSON object"):
        load_plain(path)


def test_coded_bytes_hold_what_their_code_can_and_no_more() -> None:
    ages = torch.zeros(100_000, dtype=torch.uint8)
    coded = code(ages)
    assert coded is not None
    tensor = torch.frombuffer(bytearray(coded), dtype=torch.uint8)
    assert torch.equal(decode(tensor, [100_000], torch.uint8), ages)
    with pytest.raises(ValueError, match="coded bytes hold 100001 values, not 100000|coded bytes hold 100000"):
        decode(tensor, [99_999], torch.uint8)
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10_000_000), 9)), dtype=torch.uint8)
    with pytest.raises(ValueError, match="coded bytes can't hold 10000000 values, there are"):
        decode(bomb, [10_000_000], torch.uint8)


@pytest.mark.parametrize(
    "told", ["[]", "{", '{"ages": [1, 2]}', '{"ages": ["F32", [4]]}', '{"ages": ["U8", [-4]]}', "[" * 99_999]
)
def test_what_a_file_says_of_its_coded_tensors_may_be_wrong(tmp_path: Path, told: str) -> None:
    save_file({"ages": torch.zeros(4)}, tmp_path / "x.safetensors", {CODED: told})
    with pytest.raises(ValueError, match="what it says of its coded tensors|a negative size"):
        files.read_tensors(tmp_path / "x.safetensors")
    save_file({"ages": torch.zeros(4)}, tmp_path / "x.safetensors", {CODED: '{"ages": ["U8", [4]]}'})
    with pytest.raises(ValueError, match="ages is coded, but is not of bytes"):
        files.read_tensors(tmp_path / "x.safetensors")


def test_a_list_of_files_that_inflates_is_refused() -> None:
    import base64

    bomb = base64.b85encode(zlib.compress(bytes(2 * opening.LARGEST_JSON))).decode()
    for packed in (bomb, "~", "é", 7, base64.b85encode(zlib.compress(b"[[]]")).decode()):
        with pytest.raises(DataError, match="the list of files in the checkpoint can't be read"):
            _unpacked({"files": packed})


@pytest.mark.parametrize("shard", ["../x", "/etc/passwd", 7])
def test_a_list_of_shards_names_files_beside_it(tmp_path: Path, shard: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ConfigError, match="is no plain file name"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("model", "layers", "8", "the setting model.layers is '8', not of its kind"),
        ("model", "layers", True, "the setting model.layers is 'True', not of its kind"),
        ("model", "layers", 10**6, "the setting model.layers is '1000000', not >= 1"),
        ("data", "files", ["a", 1], "the setting data.files is"),
        ("data", "files", "a", "the setting data.files is 'a', not of its kind"),
        ("data", "source", 3, "data.source=3 is of another version"),
        ("optimizer", "lr", float("nan"), "the setting optimizer.lr is 'nan'"),
        ("sparsity", "density", {"a": 1}, "the setting sparsity.density is"),
    ],
)
def test_saved_settings_are_of_their_kind_and_in_their_range(section: str, key: str, value: object, told: str) -> None:
    settings = to_dict(Config())
    settings[section][key] = value
    with pytest.raises(ConfigError) as caught:
        from_dict(settings)
    assert told in str(caught.value)


def test_settings_that_are_none() -> None:
    none: list[Any] = [[], {"model": 3}]
    for settings in none:
        with pytest.raises(ConfigError, match="no settings of smet-train|the setting model is '3', not a section"):
            from_dict(settings)


@pytest.mark.parametrize(
    "settings",
    [{"num_hidden_layers": 10**9}, {"text_config": {"n_layer": 10_001}}, {"a": [{"num_experts": 10**5}]}],
)
def test_a_config_json_builds_so_many_layers_and_no_more(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"x: \w+ is \d+, 10000 is the most"):
        without_code(settings, "x")
    assert without_code({"num_hidden_layers": 10_000}, "x") == {"num_hidden_layers": 10_000}
