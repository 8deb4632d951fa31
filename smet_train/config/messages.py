"""What a person typed wrong, said from the texts of Hydra's and OmegaConf's errors in at most three lines."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from smet_train.config.fields import Leaf, leaves, spell
from smet_train.config.locate import group_options, groups
from smet_train.config.schema import Config

_KINDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
    "String": "a text",
}


def nearest(word: str, options: Sequence[str], n: int = 1, cutoff: float = 0.5) -> list[str]:
    """The ``options`` that are spelled most like ``word``, nearest first; none if none is near."""
    return get_close_matches(word, options, n=n, cutoff=cutoff)


def stray_option(message: str) -> str:
    """What argparse says of an option that it does not know, or that lacks its value."""
    stray = re.search(r"unrecognized arguments: (?:.* )?--?([\w.]+=\S*)", message)
    guess = f"; a setting is written without dashes: {stray[1]}" if stray else "; smet-train --help lists the options"
    return f"{message}{guess}"


def unknown_option(group: str, name: str, options: Sequence[str]) -> str:
    """``group=name`` has no YAML file; ``options`` are the names that have one."""
    near = nearest(name, options, n=3)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no {group}={name}{guess}\n{group} is one of: {', '.join(options)}"


def unknown_key(key: str) -> str:
    """No setting has this key."""
    if key in groups():
        return f"{key} is chosen with a plus sign: write +{key}=NAME, NAME being one of {', '.join(group_options(key))}"
    known = [leaf.key for leaf in leaves(Config())]
    tail = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == tail] or get_close_matches(key, known, n=1)
    tails = {name.rpartition(".")[2]: name for name in known}
    near = near or [tails[name] for name in get_close_matches(tail, tails, n=1)]
    guess = f"; did you mean {' or '.join(near[:3])}?" if near else "; smet-train --help lists all keys"
    return f"unknown key {key}{guess}"


def sweep_without_flag(override: str) -> str:
    """Several values for one key, but no ``-m``."""
    key, _, value = override.partition("=")
    return f"{override} gives several values: add -m to run a sweep, or write {key}=[{value}] if it takes a list"


def unreadable_override(override: str) -> str:
    """The text is not in Hydra's grammar."""
    return (
        f"cannot read {override!r}: write key=value, for instance sparsity.density=0.1\n"
        "A value with spaces, commas, = or brackets needs quotes inside quotes: \"data.files=['my file.txt']\""
    )


def unusable_override(override: str, error: Exception) -> str:
    """Hydra reads the text but fails over it."""
    if isinstance(error, UnicodeDecodeError):
        return f"{override}: a YAML file that it reads is not UTF-8 text ({error}); convert it"
    said = (str(error).splitlines() or [""])[0]
    key = override.lstrip("+~").partition("=")[0]
    hint = f"write {key}=NAME, NAME being one of {', '.join(group_options(key))}" if key in groups() else ""
    hint = hint or "write key=value, for instance sparsity.density=0.1"
    return f"{override!r} can't be used ({type(error).__name__}{': ' if said else ''}{said[:200]}); {hint}"


def _not_convertible(match: re.Match[str]) -> str:
    key = match["key"]
    return f"{key}={match['value']} is not {_KINDS.get(match['kind'], match['kind'])}{_example(key)}"


def _no_primary_config(match: re.Match[str]) -> str:
    name = match["name"]
    return f"--config-name {name}: there is no {name}.yaml; leave it out, or add its folder by --config-dir"


def _not_in_enum(match: re.Match[str]) -> str:
    return f"{match['key']}={match['value']} is not possible; write one of: {match['choices']}"


def _not_a_list(match: re.Match[str]) -> str:
    return f"{match['key']} takes a list{_example(match['key'], '[first,second]')}"


def _not_optional(match: re.Match[str]) -> str:
    return f"{match['key']} can't be null{_example(match['key'])}"


def _not_a_value(match: re.Match[str]) -> str:
    key = match["key"]
    if leaf := _leaf(key):
        return f"{key} has no keys of its own{_example(key, '[first,second]' if leaf.default == [] else '')}"
    near = [leaf.key for leaf in leaves(Config()) if leaf.key.startswith(key + ".")]
    options = f", or a NAME in {key}=NAME among {', '.join(group_options(key))}" if key in groups() else ""
    return f"{key} is a section, not a value; set one of its keys, such as {', '.join(near[:3])}{options}"


def _example(key: str, fallback: str = "") -> str:
    leaf = _leaf(re.sub(r"\[\d+\]$", "", key))
    if leaf is None:
        return ""
    value = fallback if leaf.default in (None, []) else spell(leaf.default)
    example = f"; write for instance {leaf.key}={value}" if value else ""
    return f" ({leaf.help}){example}"


def _leaf(key: str) -> Leaf | None:
    return next((leaf for leaf in leaves(Config()) if leaf.key == key), None)


_AT_KEY = r"[\s\S]*?full_key: (?P<key>\S+)"
_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"Key '[^']+' (?:is )?not in '\w+'" + _AT_KEY, lambda match: unknown_key(match["key"])),
    (r"Cannot find primary config '(?P<name>[^']*)'", _no_primary_config),
    (r"Could not override '(?P<key>[^']+)'", lambda match: unknown_key(match["key"])),
    (r"Value '(?P<value>.*)' of type '.*' could not be converted to (?P<kind>\w+)" + _AT_KEY, _not_convertible),
    (r"Value '(?P<value>.*)' is not a valid (?P<kind>\w+)" + _AT_KEY, _not_convertible),
    (r"Invalid value '(?P<value>.*)', expected one of \[(?P<choices>.*)\]" + _AT_KEY, _not_in_enum),
    (r"(?:not a ListConfig, list or tuple|to a list|to ListConfig|is not a list)" + _AT_KEY, _not_a_list),
    (r"field '[^']+' is not Optional" + _AT_KEY, _not_optional),
    (r"Incompatible value 'None'" + _AT_KEY, _not_optional),
    (r"(?:Invalid type assigned|Merge error|Cannot (?:merge|assign|convert '\w+' to))" + _AT_KEY, _not_a_value),
)  # fmt: skip


def explain(text: str) -> str:
    """``text``, the messages of an error and its causes, in our words; its first two lines if we have none."""
    for pattern, say in _RULES:
        match = re.search(pattern, text)
        if match:
            return say(match)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:2])
