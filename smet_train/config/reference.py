"""``docs/configuration.md`` from the settings themselves: ``python -m smet_train.config.reference FILE`` writes it."""

import sys
from dataclasses import is_dataclass
from pathlib import Path

import yaml

from smet_train.config.continuation import CHANGEABLE_KEYS
from smet_train.config.fields import Leaf, leaves, matches, spell
from smet_train.config.locate import config_folder, group_options, groups, option_comment
from smet_train.config.plain import flatten
from smet_train.config.plan_settings import PlanSettings
from smet_train.config.schema import Config

HEAD = """\
# Configuration

Written by `make docs` from [schema.py](../smet_train/config/schema.py),
[continuation.py](../smet_train/config/continuation.py) and [configs/](../configs/); a test holds that it is current.
`smet-train --help` tells the same on a terminal.

A setting is typed as `key=value`; a list as `key=[first,second]`; null as `key=null`. Settings on the command line win
over `+debug=NAME` and `+experiment=NAME`, these over the groups `model=`, `data=` and `method=`, these over the
defaults. The meaning of a number begins with its unit, or with what it counts or is a fraction of. An unknown key, a
value out of range, and a setting that nothing would read are refused with what to write instead.

The last column tells what may change when a run goes on ([reliability.md](reliability.md)): where it says *fixed*,
another value is another run, in a folder of its own; where it says *may change*, the change is written to
`resumes.jsonl`.
"""

_SECTIONS_HEAD = "| setting | meaning | values | default | on resume |\n|---|---|---|---|---|"
_GROUP_NOTES = {
    "model": "`model=NAME`; what a model does not set has the default of [`model`](#model).",
    "data": "`data=NAME`.",
    "method": "`method=NAME`: presets over settings of their own, each of which can be overridden.",
    "experiment": "`+experiment=NAME`: whole runs; `bench_…` are what `smet-bench` trains.",
    "sweep": "`+sweep=NAME`: what a sweep searches; see [sweeps.md](sweeps.md).",
    "cluster": "`+cluster=NAME`: where the jobs of a sweep run; see [sweeps.md](sweeps.md).",
    "debug": "`+debug=NAME`: on top of everything else, to look for mistakes.",
}


def reference_text() -> str:
    """The whole page."""
    config = Config()
    top = [leaf for leaf in leaves(config) if "." not in leaf.key]
    parts = [HEAD, _section("Whole run", type(config).__doc__, top)]
    for name, value in vars(config).items():
        if is_dataclass(value):
            parts.append(_section(f"`{name}`", type(value).__doc__, leaves(value, f"{name}.")))
    parts.append(_plan_section())
    parts.append("## Groups\n\nYAML files that set several of the above at once.\n")
    parts += [_group(name) for name in sorted(groups(), key=list(_GROUP_NOTES).index)]
    return "\n".join(parts)


def _section(title: str, about: str | None, settings: list[Leaf]) -> str:
    rows = [_row([*_cells(leaf), _on_resume(leaf.key)]) for leaf in settings]
    return "\n".join([f"## {title}\n", f"{about}\n", _SECTIONS_HEAD, *rows, ""])


def _plan_section() -> str:
    head = "| setting | meaning | values | default |\n|---|---|---|---|"
    rows = [_row(_cells(leaf)) for leaf in leaves(PlanSettings(), "plan.")]
    note = (
        "Settings of `smet-plan` alone, beside those of the run that it plans. `smet-bench --help` lists `bench.*`.\n"
    )
    return "\n".join(["## `plan`\n", note, head, *rows, ""])


def _cells(leaf: Leaf) -> list[str]:
    return [f"`{leaf.key}`", leaf.help, _values(leaf), f"`{spell(leaf.default)}`"]


def _values(leaf: Leaf) -> str:
    """What may be written: names, or the kind of value and its range."""
    if leaf.choices:
        return ", ".join(f"`{choice}`" for choice in leaf.choices)
    return leaf.kind if leaf.range is None else f"{leaf.kind}, {leaf.range.text}"


def _on_resume(key: str) -> str:
    return "may change" if matches(key, CHANGEABLE_KEYS) else "fixed"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _group(group: str) -> str:
    rows = [
        _row([f"`{name}`", option_comment(group, name), ", ".join(f"`{item}`" for item in _sets(group, name))])
        for name in group_options(group)
    ]
    head = "| name | what | sets |\n|---|---|---|"
    return "\n".join([f"### `{group}`\n", f"{_GROUP_NOTES[group]}\n", head, *rows, ""])


def _sets(group: str, name: str) -> list[str]:
    """The overrides that a YAML file stands for, as they would be typed."""
    text = (config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    chosen = [
        f"{key.removeprefix('override ').strip('/')}={option}"
        for entry in content.pop("defaults", [])
        for key, option in entry.items()
    ]
    prefix = "" if "@package _global_" in text else f"{group}."
    return chosen + [f"{prefix}{key}={_typed(value)}" for key, value in flatten(content).items()]


def _typed(value: object) -> str:
    """``value`` as Hydra takes it in an override: what is resolved, ``${…}``, in quotes."""
    return f"'{value}'" if isinstance(value, str) and "${" in value else spell(value)


def main(arguments: list[str]) -> int:
    """Write the page to the file that is named; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m smet_train.config.reference docs/configuration.md", file=sys.stderr)
        return 2
    Path(arguments[0]).write_text(reference_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
