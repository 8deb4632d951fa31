"""Commands and their output as a document shows them, and whether an actual output is what is shown.

In a ``console`` block a line that begins with ``$ `` is typed, and what follows up to the next one is its output. ``…``
alone on a line stands for any lines, within a line for any text. What depends on the machine is compared as a wildcard:
numbers with two decimals or more that are no part of a name, speeds, times, sizes. Rules of tables are not compared.
"""

import re
from dataclasses import dataclass

_BORDERS = re.compile(r"[┃│]")
_RULE = re.compile(r"^[┏┓┗┛┌┐└┘├┤┡┩╇┳╈┷┴┬┼━─╋┻╂┿╪═╶╴\s]+$")
_VARYING = (
    (re.compile(r"[+-]?(?<![\w=.])\d[\d,]*\.\d{2,}(?![\w.])"), "#"),
    (re.compile(r"\b[\d,.]+(?= tokens/s)"), "#"),
    (re.compile(r"\b\d+:\d\d:\d\d\b"), "#"),
    (re.compile(r"(?<![\w=])(?:\d[\d,.]*|#) (?:s a step|steps/s|KiB|MiB|GiB|KB|kB|MB|ms|min|s|h)(?![\w/])"), "#"),
    (re.compile(r"^(│\s*)?(sparsity\.\S+ done [\d,]+ .*) [\d,]+$"), r"\2 #"),  # the speed in the last column of a sweep
)
_ANY = "…"


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a document and the output that is shown."""

    command: str
    shown: str


def steps(text: str) -> list[Step]:
    """The steps of a document in order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append(Step(command, shown))
    return found


def normal(output: str) -> list[str]:
    """The lines that are compared, with ``#`` for what depends on the machine."""
    lines = []
    for line in output.splitlines():
        if _RULE.match(line):
            continue
        bare = " ".join(_BORDERS.sub(" ", line).split())
        for pattern, instead in _VARYING:
            bare = pattern.sub(instead, bare)
        if bare:
            lines.append(bare)
    return lines


def difference(shown: str, actual: str) -> str | None:
    """None if ``actual`` is what is shown; else the first line that is shown and not there, and what is there.

    A line of ``…`` alone skips as little as it can, so what follows it is looked for from where the lines before ended.
    """
    lines, at = normal(actual), 0
    skipping = False
    for want in normal(shown):
        if want == _ANY:
            skipping = True
            continue
        pattern = re.compile(".*".join(map(re.escape, want.split(_ANY))))
        there = range(at, len(lines) if skipping else min(at + 1, len(lines)))
        place = next((number for number in there if pattern.fullmatch(lines[number])), None)
        if place is None:
            return f"shown: {want}\nthere: {lines[at] if at < len(lines) else 'nothing more'}"
        at, skipping = place + 1, False
    return None if skipping or at == len(lines) else f"shown: nothing more\nthere: {lines[at]}"
