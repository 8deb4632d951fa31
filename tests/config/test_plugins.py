"""Plugins: loaded once, told when they fail, and their names are choices like ours."""

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from smet_train.config.compose import compose
from smet_train.config.fields import leaves, spell
from smet_train.config.paths import absolute, with_absolute_paths
from smet_train.config.plain import from_dict, to_dict
from smet_train.config.plugins import added, load_plugins, open_schema
from smet_train.config.schema import Backend, Config, DataSource, Drop, Grow
from smet_train.errors import ConfigError
from smet_train.sparse import backends
from smet_train.topology import rules

OPEN: tuple[type[Enum], ...] = (Backend, Drop, Grow, DataSource)
BACKEND = """
from smet_train.sparse.backends import BACKENDS, register_backend
class Mine(type(BACKENDS["reference"])):
    name = "{name}"
register_backend(Mine())
"""

Write = Callable[[str], str]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test adds is gone after it."""
    held = [dict(registry) for registry in (backends.BACKENDS, rules.DROPS, rules.GROWS)]
    names = [list(choices.__members__) for choices in OPEN]
    yield
    for registry, before in zip((backends.BACKENDS, rules.DROPS, rules.GROWS), held, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(before)  # type: ignore[attr-defined]
    for choices, before_names in zip(OPEN, names, strict=True):
        for name in set(choices.__members__) - set(before_names):
            del choices._member_map_[name]
            choices._member_names_.remove(name)


@pytest.fixture
def plugin(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "plugin.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_registered_name_is_a_choice_as_ours_are(plugin: Write) -> None:
    path = plugin(BACKEND.format(name="mine"))
    with pytest.raises(ConfigError, match="sparsity.backend=mine is not possible; write one of: auto, densify"):
        compose(["sparsity.backend=mine"])
    config = compose(["sparsity.backend=mine", f"plugins=['{path}']"])
    assert config.sparsity.backend.name == spell(config.sparsity.backend) == "mine"
    assert config.sparsity.backend is Backend["mine"]
    assert added(config.sparsity.backend)
    assert not any(map(added, [Backend.csr, Drop.magnitude, Grow.random, DataSource.text]))
    assert next(leaf for leaf in leaves(Config()) if leaf.key == "sparsity.backend").choices[-1] == "mine"
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"write one of: auto, .*, mine"):
        compose(["sparsity.backend=mien", f"plugins=['{path}']"])


def test_a_file_is_read_once(plugin: Write, tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = plugin(f"with open({str(log)!r}, 'a') as file: file.write('read ')")
    load_plugins([path, path])
    load_plugins([path])
    assert log.read_text() == "read "


def test_the_settings_that_hydra_reads_are_the_schemas() -> None:
    def plain_defaults(config: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in vars(config).items():
            found[name] = plain_defaults(value) if hasattr(value, "__dataclass_fields__") else spell(value)
        return found

    assert plain_defaults(open_schema()()) == plain_defaults(Config())
    assert open_schema()().data.files is not open_schema()().data.files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", r"plugin.py:1: ZeroDivisionError: division by zero"),
        ("import a_library_that_is_not_there", "ModuleNotFoundError: No module named 'a_library"),
        ("what this", r"plugins: .* fails at .*plugin.py:1: SyntaxError"),
        (BACKEND.format(name="csr"), r"plugin.py: there is a backend csr already; give yours another name"),
        (BACKEND.format(name="auto"), "there is a backend auto already"),
        (
            "from smet_train.sparse.backends import register_backend as r\nclass A: name = 'a'\nr(A())",
            "the backend A has no unsupported, plan, matmul",
        ),
        ("from smet_train.topology import register_drop as r\nr('magnitude', abs)", "topology.drop=magnitude already"),
        ("from smet_train.topology import register_grow as r\nr('random', abs)", "topology.grow=random already"),
        ("from smet_train.data.sources import register_source as r\nr('text', abs)", "data.source=text already"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_told(plugin: Write, text: str, message: str) -> None:
    path = plugin(text)
    for _ in range(2):  # a plugin that failed is not taken for loaded
        with pytest.raises(ConfigError, match=message):
            compose([f"plugins=['{path}']"])


def test_a_missing_file_or_module_is_told() -> None:
    with pytest.raises(ConfigError, match="plugins: gone.py is no file, seen from .*; write the path of a Python file"):
        load_plugins(["gone.py"])
    with pytest.raises(ConfigError, match="there is no module gone.there; write the path of a file"):
        load_plugins(["gone.there"])
    load_plugins(["json"])


def test_files_are_named_from_the_root_and_modules_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("plugins", ["mine.py", "package.module"]) == [f"{tmp_path}/mine.py", "package.module"]
    assert with_absolute_paths(Config(plugins=["mine.py"])).plugins == [f"{tmp_path}/mine.py"]


def test_saved_settings_are_read_without_running_a_plugin(plugin: Write, tmp_path: Path) -> None:
    saved = to_dict(Config(plugins=[str(plugin(f"open({str(tmp_path / 'ran')!r}, 'w')"))]))
    saved["topology"]["drop"] = "theirs"
    config = from_dict(saved)
    assert config.topology.drop.name == "theirs"
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="topology.drop=others is of another version"):
        from_dict({"topology": {"drop": "others"}})


def test_settings_that_a_registered_rule_may_read_are_not_refused(plugin: Write) -> None:
    path = plugin("from smet_train.topology import register_drop as r\nr('mine', lambda q: q.layer.values.abs())")
    with pytest.raises(ConfigError, match="topology.probe_steps=2 is read with"):
        compose(["topology.probe_steps=2"])
    assert compose(["topology.probe_steps=2", "topology.drop=mine", f"plugins=['{path}']"]).topology.probe_steps == 2
