"""What a setting is: a dataclass field with its meaning and its range, and the walk over all of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

_LARGEST = 10**9
_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a setting may be; a list setting's numbers each."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def holds(self, number: float) -> bool:
        """Whether ``number`` is finite and inside; NaN is not."""
        return math.isfinite(number) and self.at_least <= number <= self.at_most and self.above < number < self.below

    @property
    def text(self) -> str:
        """The bounds as a reader sees them, as in ``> 0 and <= 1``; empty if there are none."""
        bounds = [(">=", self.at_least), (">", self.above), ("<=", self.at_most), ("<", self.below)]
        # Whole numbers in full: 4294967296, where :g would have 4.29497e+09.
        return " and ".join(
            f"{sign} {bound if isinstance(bound, int) else f'{bound:g}'}"
            for sign, bound in bounds
            if math.isfinite(bound)
        )


def setting(
    help_text: str,
    default: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> Any:
    """A dataclass field with its meaning and, for numbers, its range; no whole number is above a thousand million."""
    if isinstance(default, int) and not isinstance(default, bool) and math.isinf(min(at_most, below)):
        at_most = _LARGEST
    bounds = Range(at_least, above, at_most, below)
    metadata = {"help": help_text, "range": None if bounds == Range() else bounds}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its dotted key, meaning, default, range (None if any value will do), the names of its Enum if it has
    one, and the kind of its values in words, as in ``whole number or null``."""

    key: str
    help: str
    default: Any
    range: Range | None
    choices: tuple[str, ...]
    kind: str


def leaves(section: Any, prefix: str = "") -> list[Leaf]:
    """All settings of a dataclass instance and of the dataclasses in it, in their order."""
    types = get_type_hints(type(section))
    found = []
    for item in fields(section):
        value, key = getattr(section, item.name), prefix + item.name
        if is_dataclass(value):
            found += leaves(value, key + ".")
        else:
            kind = types[item.name]
            range_ = item.metadata["range"]
            found.append(Leaf(key, item.metadata["help"], value, range_, _choices(kind), _kind_text(kind)))
    return found


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is UnionType:
        return next((names for part in get_args(kind) if (names := _choices(part))), ())
    return tuple(member.name for member in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(map(_kind_text, get_args(kind)))
    if get_origin(kind) is list:
        return f"list of {_kind_text(*get_args(kind))}s"
    return _KINDS.get(kind, "name")


def value_at(config: Any, key: str) -> Any:
    """The value of the dotted ``key``."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def matches(key: str, keys: Iterable[str]) -> bool:
    """Whether ``keys`` has ``key``, or a section (with a dot at its end) that it is in."""
    return any(key.startswith(item) if item.endswith(".") else key == item for item in keys)


def spell(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{','.join(spell(item) for item in value)}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
