"""The table of a model's sparse layers, alike layers in one row."""

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def group_layers(layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of alike layers: names that differ in numbers only, with equal shape, density and backend.

    ``layers`` are ``SparseLinear`` modules by name. Each row has name (numbers as ``*``), count, shape, density,
    block (edge of its blocks), active (values of one layer) and backend.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, layer in layers.items():
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        key = (pattern, layer.layout, layer.backend.name)
        row = rows.setdefault(
            key,
            {
                "name": pattern,
                "count": 0,
                "shape": layer.layout.shape_text,
                "density": layer.layout.density,
                "block": layer.layout.block,
                "active": layer.layout.n_values,
                "backend": layer.backend.name,
            },
        )
        row["count"] += 1
    return list(rows.values())


def print_layers(console: Console, layers: Mapping[str, Any]) -> None:
    """Print the sparse layers with shape, density, active values and backend."""
    table = Table(title="sparse layers", title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("layers", "shape", "block", "density", "active each"):
        table.add_column(column, justify="right")
    table.add_column("backend")
    for row in group_layers(layers):
        table.add_row(
            row["name"],
            str(row["count"]),
            row["shape"],
            str(row["block"]),
            f"{row['density']:.4g}",
            f"{row['active']:,}",
            row["backend"],
        )
    console.print(table)
